import { expect, test } from "vitest";
import type { History } from "./api";
import { Curves, firstAfter } from "./series";

const history = (at_s: number[], resolution_s = 1): History => ({
  resolution_s,
  series: [{ node: "ada", source: "host", name: "cpu_pct", at_s, mean: at_s, minimum: at_s, maximum: at_s }],
});
const sample = (at_s: number) => ({ node: "ada", source: "host", at_ns: at_s * 1e9, values: { cpu_pct: at_s } });

test("live samples go on where history ends, and none is there twice", () => {
  const curves = new Curves();
  for (const at_s of [3, 4, 5]) curves.add(sample(at_s), ["cpu_pct"]);
  curves.load(history([1, 2, 3, 4]));
  curves.add(sample(5), ["cpu_pct"]);
  curves.add(sample(6), ["cpu_pct"]);
  expect(curves.get("ada", "host", "cpu_pct").at_s).toEqual([1, 2, 3, 4, 5, 6]);
});

test("silence is drawn as a gap", () => {
  const curves = new Curves();
  curves.load(history([1, 2, 30, 31]));
  const [, values] = curves.drawn(curves.get("ada", "host", "cpu_pct"), 0);
  expect(values).toEqual([1, 2, null, 30, 31]);
});

test("coarse history is no silence", () => {
  const curves = new Curves();
  curves.load(history([10, 20, 30], 10));
  expect(curves.drawn(curves.get("ada", "host", "cpu_pct"), 0)[1]).toEqual([10, 20, 30]);
});

test("what has ended is forgotten", () => {
  const curves = new Curves();
  curves.load(history([1, 2, 3]));
  curves.trim(3);
  expect(curves.nodes("host", "cpu_pct")).toEqual([]);
});

test("the first entry after a limit", () => {
  expect([0, 1, 2.5, 9].map((limit) => firstAfter([1, 2, 3], limit))).toEqual([0, 1, 2, 3]);
});
