import { expect, test } from "vitest";
import { SseParser } from "./sse";

const all = (text: string, cuts: number[] = []) => {
  const parser = new SseParser();
  const edges = [0, ...cuts, text.length];
  return edges.slice(1).flatMap((end, i) => parser.feed(text.slice(edges[i], end)));
};

test("messages carry their name, id and data", () => {
  expect(all("id: a:1.2.3\nevent: fact\ndata: {}\n\n")).toEqual([{ event: "fact", data: "{}", id: "a:1.2.3" }]);
});

test("comments are no messages", () => {
  expect(all(": hello\n\n: again\n\n")).toEqual([]);
});

test("several lines of data are one text", () => {
  expect(all("data: a\ndata: b\n\n")[0]?.data).toBe("a\nb");
});

test("an id holds for its own message only, so that a message without one moves nothing", () => {
  expect(all("id: 1\ndata: a\n\ndata: b\n\n").map(({ id }) => id)).toEqual(["1", null]);
});

test("it does not matter where the chunks are cut", () => {
  const text = "id: 1\r\nevent: line\r\ndata: {\"a\":1}\r\n\r\n: c\r\n\r\nevent: reset\r\ndata: {}\r\n\r\n";
  const whole = all(text);
  expect(whole.map(({ event }) => event)).toEqual(["line", "reset"]);
  for (let cut = 1; cut < text.length; cut += 1) expect(all(text, [cut])).toEqual(whole);
});
