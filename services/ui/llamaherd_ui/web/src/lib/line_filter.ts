/** Which lines are shown: the same rule as the logs service's query, for lines that come live. Pure. */

import { LEVELS, type Level, type LineQuery, type StoredLine } from "./api";

export interface LineFilter {
  text: string;
  min_level: Level;
  /** `service` or `service/unit`; empty: every source. */
  source: string;
}

export const EVERYTHING: LineFilter = { text: "", min_level: "debug", source: "" };

export function isEverything(filter: LineFilter): boolean {
  return filter.text.trim() === "" && filter.min_level === "debug" && filter.source === "";
}

/** The filter as query of `GET /api/v1/logs`. */
export function toQuery(filter: LineFilter): Omit<LineQuery, "limit"> {
  const query: Omit<LineQuery, "limit"> = {};
  if (filter.text.trim()) query.text = filter.text.trim();
  if (filter.min_level !== "debug") query.min_level = filter.min_level;
  const slash = filter.source.indexOf("/");
  if (filter.source) query.service = slash < 0 ? filter.source : filter.source.slice(0, slash);
  if (slash >= 0) query.unit = filter.source.slice(slash + 1);
  return query;
}

interface Term {
  words: string[];
  /** The last word is only the beginning of one. */
  open: boolean;
}

/**
 * A test for lines. Words must all occur; `"a phrase"` occurs as it stands; `load*` begins a word. Case and accents
 * do not matter. The same rule as llamaherd_logs/search.py.
 */
export function matcher(filter: LineFilter): (line: StoredLine) => boolean {
  const query = toQuery(filter);
  const least = LEVELS.indexOf(filter.min_level);
  const terms = query.text === undefined ? [] : termsOf(query.text);
  // A text without a single word has nothing to look for.
  const nothing = query.text !== undefined && terms.length === 0;
  return (line) =>
    !nothing &&
    LEVELS.indexOf(line.level) >= least &&
    (query.service === undefined || line.service === query.service) &&
    (query.unit === undefined || line.unit === query.unit) &&
    holdsAll(line.text, terms);
}

function holdsAll(text: string, terms: Term[]): boolean {
  if (terms.length === 0) return true;
  const words = wordsOf(text);
  return terms.every((term) => words.some((_, start) => stands(term, words, start)));
}

function stands({ words, open }: Term, text: string[], start: number): boolean {
  return words.every((word, i) => {
    const there = text[start + i];
    return there === word || (open && i === words.length - 1 && there?.startsWith(word) === true);
  });
}

function termsOf(text: string): Term[] {
  const pieces = text.match(/"[^"]*"?|[^\s"]+/g) ?? [];
  return pieces
    .map((piece) => ({ words: wordsOf(piece), open: !piece.startsWith('"') && piece.endsWith("*") }))
    .filter(({ words }) => words.length > 0);
}

/** Words as SQLite's FTS5 tokenizer `unicode61` cuts them. */
function wordsOf(text: string): string[] {
  return text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase().match(/[\p{L}\p{N}\p{Co}]+/gu) ?? [];
}
