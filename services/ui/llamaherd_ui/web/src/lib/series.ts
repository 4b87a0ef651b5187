/** Curves for the charts: history and live samples in one place. Pure, but keeps what it is given. */

import type { History, Sample } from "./api";

export interface Curve {
  /** Unix seconds, ascending. */
  at_s: number[];
  values: number[];
}

export const NONE: Curve = { at_s: [], values: [] };

/** `node`, source and name of a value. */
export const curveKey = (node: string, source: string, name: string): string => `${node}\n${source}\n${name}`;

/** A longer silence than this many resolutions is drawn as a gap. */
const GAP_FACTOR = 3.5;

export class Curves {
  readonly #curves = new Map<string, Curve>();
  #resolution_s = 1;

  /** Put history in place of what was there; live samples newer than it stay. */
  load(history: History): void {
    this.#resolution_s = history.resolution_s;
    for (const { node, source, name, at_s, mean } of history.series) {
      const key = curveKey(node, source, name);
      const live = this.#curves.get(key);
      const last = at_s.at(-1) ?? -Infinity;
      const from = live ? firstAfter(live.at_s, last) : 0;
      this.#curves.set(key, {
        at_s: [...at_s, ...(live?.at_s.slice(from) ?? [])],
        values: [...mean, ...(live?.values.slice(from) ?? [])],
      });
    }
  }

  add(sample: Sample, names: readonly string[]): void {
    const at_s = sample.at_ns / 1e9;
    for (const name of names) {
      const value = sample.values[name];
      if (value === undefined) continue;
      const key = curveKey(sample.node, sample.source, name);
      let curve = this.#curves.get(key);
      if (!curve) this.#curves.set(key, (curve = { at_s: [], values: [] }));
      if (at_s <= (curve.at_s.at(-1) ?? -Infinity)) continue;
      curve.at_s.push(at_s);
      curve.values.push(value);
    }
  }

  /** Forget what is older. */
  trim(from_s: number): void {
    for (const [key, curve] of this.#curves) {
      const keep = firstAfter(curve.at_s, from_s);
      if (keep === curve.at_s.length) this.#curves.delete(key);
      else if (keep > 64) {
        curve.at_s.splice(0, keep);
        curve.values.splice(0, keep);
      }
    }
  }

  get(node: string, source: string, name: string): Curve {
    return this.#curves.get(curveKey(node, source, name)) ?? NONE;
  }

  /** The last `span_s` seconds before the newest value of the curve. */
  tail(node: string, source: string, name: string, span_s: number): Curve {
    const { at_s, values } = this.get(node, source, name);
    const from = firstAfter(at_s, (at_s.at(-1) ?? 0) - span_s);
    return { at_s: at_s.slice(from), values: values.slice(from) };
  }

  /** Nodes that have a curve of this source and name. */
  nodes(source: string, name: string): string[] {
    const end = `\n${source}\n${name}`;
    return [...this.#curves.keys()]
      .filter((key) => key.endsWith(end))
      .map((key) => key.slice(0, -end.length))
      .sort();
  }

  /** The curve from a moment on, with a null wherever there was silence. */
  drawn(curve: Curve, from_s: number): [number[], (number | null)[]] {
    const at_s: number[] = [];
    const values: (number | null)[] = [];
    const longest = Math.max(3, this.#resolution_s * GAP_FACTOR);
    for (let i = firstAfter(curve.at_s, from_s); i < curve.at_s.length; i += 1) {
      const now = curve.at_s[i] as number;
      const before = at_s.at(-1);
      if (before !== undefined && now - before > longest) {
        at_s.push(before + longest / 2);
        values.push(null);
      }
      at_s.push(now);
      values.push(curve.values[i] as number);
    }
    return [at_s, values];
  }
}

/** Index of the first entry greater than `limit`. `sorted` is ascending. */
export function firstAfter(sorted: readonly number[], limit: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((sorted[middle] as number) <= limit) low = middle + 1;
    else high = middle;
  }
  return low;
}
