import { expect, test } from "vitest";
import type { StoredLine } from "./api";
import { EVERYTHING, isEverything, matcher, toQuery } from "./line_filter";

const line = (text: string, more: Partial<StoredLine> = {}): StoredLine => ({
  id: 1, at_ns: 1, level: "info", text, trace_id: "", node: "ada", service: "gateway", unit: "100", ...more,
});

test.each([
  ["loading", "Loading the model", true],
  ["model loading", "loading the model", true],
  ["load", "loading the model", false],
  ['"the model"', "loading the model", true],
  ['"model the"', "loading the model", false],
  ["cafe", "Café opened", true],
  ["v1/chat", "POST /v1/chat/completions", true],
  ["load*", "loading the model", true],
  ["the mod*", "loading the model", true],
  ['"load*"', "loading the model", false],
  ["llama_model-7", "the llama model 7 is here", true],
  ["...", "anything", false],
  ["", "anything", true],
])("the words %s and the line %s: %s", (text, content, expected) => {
  expect(matcher({ ...EVERYTHING, text })(line(content))).toBe(expected);
});

test("a least level hides what is less", () => {
  const matches = matcher({ ...EVERYTHING, min_level: "warning" });
  expect(matches(line("x"))).toBe(false);
  expect(matches(line("x", { level: "error" }))).toBe(true);
});

test("a source is a service, or one of its units; a unit may hold slashes", () => {
  expect(toQuery({ ...EVERYTHING, source: "llama-server/cria/0" })).toEqual({ service: "llama-server", unit: "cria/0" });
  const matches = matcher({ ...EVERYTHING, source: "llama-server/cria/0" });
  expect(matches(line("x", { service: "llama-server", unit: "cria/0" }))).toBe(true);
  expect(matches(line("x", { service: "llama-server", unit: "other/0" }))).toBe(false);
});

test("blanks are no filter", () => {
  expect(isEverything({ ...EVERYTHING, text: "  " })).toBe(true);
  expect(toQuery({ ...EVERYTHING, text: "  " })).toEqual({});
});
