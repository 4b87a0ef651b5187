/** The lines on the screen: history from the logs service, live lines after it, one filter for both. */

import { fetchLines, type StoredLine } from "./api";
import { EVERYTHING, matcher, toQuery, type LineFilter } from "./line_filter";

const PAGE = 500;
/** Beyond it the oldest are let go; scrolling up fetches them again. */
const MOST = 200_000;

export interface GapRow {
  gap: true;
  /** Places it between lines. */
  id: number;
  text: string;
}

export type Row = StoredLine | GapRow;

export const isGap = (row: Row): row is GapRow => "gap" in row;

export class LogView {
  /** Not reactive for its size: `version` tells when it changed. Ascending by id. */
  rows: Row[] = [];
  version = $state(0);
  filter = $state.raw<LineFilter>(EVERYTHING);
  paused = $state(false);
  /** Whether the window stays at the newest line. */
  follow = $state(true);
  /** Lines that arrived while paused. */
  held = $state(0);
  loading = $state(true);
  error = $state<string | null>(null);
  /** Whether the logs service may have more before the first row. */
  hasOlder = $state(false);
  /** Rows let go at the front or put there in the last change: the window moves along. */
  shifted = 0;
  #matches = matcher(EVERYTHING);
  #waiting: Row[] = [];
  #abort = new AbortController();
  #loadingOlder = false;

  setFilter(filter: LineFilter): void {
    this.filter = filter;
    this.#matches = matcher(filter);
    this.paused = false;
    void this.load();
  }

  /** Start anew from the newest lines. Lines that arrive meanwhile are kept. */
  async load(): Promise<void> {
    this.#abort.abort();
    const abort = (this.#abort = new AbortController());
    this.loading = true;
    this.error = null;
    this.#waiting = [];
    this.held = 0;
    try {
      const answer = await fetchLines({ ...toQuery(this.filter), limit: PAGE }, abort.signal);
      if (abort.signal.aborted) return;
      this.rows = answer.lines.reverse();
      this.hasOlder = answer.lines.length === PAGE;
    } catch (error) {
      if (abort.signal.aborted) return;
      this.rows = [];
      this.hasOlder = false;
      this.error = error instanceof Error ? error.message : String(error);
    }
    this.loading = false;
    this.shifted = 0;
    this.#append(this.#waiting.splice(0));
    this.version += 1;
  }

  async loadOlder(): Promise<void> {
    const first = this.rows.find((row) => !isGap(row));
    if (this.#loadingOlder || this.loading || !this.hasOlder || !first) return;
    this.#loadingOlder = true;
    const { signal } = this.#abort;
    try {
      const answer = await fetchLines({ ...toQuery(this.filter), before: first.id, limit: PAGE }, signal);
      if (signal.aborted) return;
      this.hasOlder = answer.lines.length === PAGE;
      this.rows = [...answer.lines.reverse(), ...this.rows];
      this.shifted += answer.lines.length;
      this.version += 1;
    } catch {
      // The next scroll asks again.
    } finally {
      this.#loadingOlder = false;
    }
  }

  /** Live lines; what the filter hides is passed over. */
  receive(lines: StoredLine[]): void {
    this.#take(lines.filter(this.#matches));
  }

  /** Lines were lost on the way: say so where they are missing. */
  markGap(text: string): void {
    const last = this.#waiting.at(-1) ?? this.rows.at(-1);
    this.#take([{ gap: true, id: last?.id ?? 0, text }]);
  }

  resume(): void {
    this.paused = false;
    this.held = 0;
    this.#append(this.#waiting.splice(0));
    this.version += 1;
  }

  #take(rows: Row[]): void {
    if (rows.length === 0) return;
    if (this.loading || this.paused) {
      this.#waiting.push(...rows);
      if (this.#waiting.length > MOST) this.#waiting.splice(0, this.#waiting.length - MOST);
      if (this.paused) this.held = this.#waiting.length;
      return;
    }
    this.#append(rows);
    this.version += 1;
  }

  #append(rows: Row[]): void {
    for (const row of rows) {
      // A line that came both with the history and live has been seen.
      if (isGap(row) || row.id > (this.rows.at(-1)?.id ?? -1)) this.rows.push(row);
    }
    if (this.rows.length > MOST * 1.1) {
      const surplus = this.rows.length - MOST;
      this.rows.splice(0, surplus);
      this.shifted -= surplus;
      this.hasOlder = true;
    }
  }
}
