import { expect, test } from "vitest";
import { formatAge, formatBytes, formatDuration, formatParameters, formatRough, plain, tokensPerSecond } from "./format";

test.each([
  [0, "0 B"], [1023, "1023 B"], [1024, "1 KiB"], [4.1 * 2 ** 20, "4.1 MiB"], [1023.9 * 1024, "1 MiB"], [32 * 2 ** 30, "32 GiB"],
])("%d bytes are %s", (bytes, text) => expect(formatBytes(bytes)).toBe(text));

test.each([[1_234_567, "1.2 M"], [8.19e9, "8.2 B"], [27e9, "27 B"], [940, "940"]])("%d weights are %s", (n, text) =>
  expect(formatParameters(n)).toBe(text),
);

test.each([[0.31, "0.3 ms"], [2.4, "2 ms"], [999, "999 ms"], [999.6, "1.00 s"], [7012, "7.01 s"], [61_000, "1 min 01 s"]])(
  "%d ms last %s",
  (ms, text) => expect(formatDuration(ms)).toBe(text),
);

test("ages never run backwards", () => expect(formatAge(-5)).toBe("0 s"));
test("a glance needs one unit", () => expect([59e3, 3599e3, 7200e3].map(formatRough)).toEqual(["59 s", "59 min", "2 h"]));
test("terminal colours are taken out", () => expect(plain("\u001b[31mred\u001b[0m")).toBe("red"));
test("the rate is unknown when the time is", () => {
  expect(tokensPerSecond({ completion_tokens: 10, completion_ms: 500 })).toBe(20);
  expect(tokensPerSecond({ completion_tokens: 10, completion_ms: 0 })).toBeNull();
  expect(tokensPerSecond({ completion_tokens: null, completion_ms: 5 })).toBeNull();
});
