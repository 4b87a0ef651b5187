import { expect, test } from "vitest";
import { backoffMs } from "./stream";

test("waits grow from half a second to ten and no further", () => {
  expect([1, 2, 3, 4, 9, 60].map((attempt) => backoffMs(attempt, 1))).toEqual([500, 750, 1125, 1688, 10_000, 10_000]);
});

test("jitter takes away a quarter at most", () => {
  expect(backoffMs(2, 0)).toBe(563);
});
