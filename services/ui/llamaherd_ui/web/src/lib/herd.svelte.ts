/** The page's whole state: one snapshot, then the live stream folded in. The only place both meet. */

import {
  ApiError,
  command,
  fetchEvents,
  fetchFleet,
  fetchHistory,
  fetchRequests,
  type Fact,
  type FinishedRequest,
  type Gap,
  type Model,
  type RecordedFact,
  type Sample,
  type Service,
  type StoredLine,
} from "./api";
import { clock } from "./clock.svelte";
import { EMPTY, UNASKED, apply, fromAnswer, keyOf, shownInstance, withService, type Fleet } from "./fleet";
import { LogView } from "./log_view.svelte";
import { Curves } from "./series";
import type { Message } from "./sse";
import { HerdStream, type Connection } from "./stream";

const REQUESTS_PAGE = 50;
const REQUESTS_MOST = 1000;
/** Values the page draws; a sample holds many more. */
const NAMES = ["cpu_pct", "memory_used_bytes", "memory_total_bytes", "rss_bytes"] as const;
/** After that long without a fact, a command is no longer shown as under way. */
const PATIENCE_MS = 20_000;
const MARKS_BACK = 500;
/** States in which a command has visibly begun. */
const SHOWN = { load: ["loading", "ready"], unload: ["draining", "stopping", "stopped"] };

export interface Pending {
  verb: "load" | "unload";
  since_ms: number;
  /** Last sequence of the instance when the command was accepted; null before the answer. */
  sequence: number | null;
}

/** A moment worth a line on the charts. */
export interface Mark {
  sequence: number;
  at_s: number;
  text: string;
  kind: "good" | "bad" | "plain";
}

export class Herd {
  fleet = $state.raw<Fleet>(EMPTY);
  loaded = $state(false);
  connection = $state.raw<Connection>({ phase: "connecting" });
  /** When the last message came. */
  heard_ms = $state(0);
  requests = $state.raw<FinishedRequest[]>([]);
  olderRequests = $state<number | null>(null);
  requestsPaused = $state(false);
  heldRequests = $state.raw<FinishedRequest[]>([]);
  pending = $state.raw<Record<string, Pending>>({});
  refusals = $state.raw<Record<string, string>>({});
  /** Sentences about facts that are no longer kept. */
  gaps = $state.raw<string[]>([]);
  marks = $state.raw<Mark[]>([]);
  readonly curves = new Curves();
  /** Counts changes of `curves`. */
  curvesVersion = $state(0);
  historyError = $state<string | null>(null);
  range_s = $state(300);
  readonly log = new LogView();
  readonly #stream: HerdStream;
  #folded: Record<string, number> = {};

  constructor() {
    this.#stream = new HerdStream({
      snapshot: (resume, signal) => this.#snapshot(resume, signal),
      messages: (messages) => this.#receive(messages),
      connection: (connection) => {
        this.connection = connection;
      },
    });
  }

  /** Where clients send requests. Without word from the server: the gateway's usual port on this host. */
  get gatewayUrl(): string {
    return this.fleet.gateway_url ?? `http://${location.hostname}:8080/v1`;
  }

  start(): () => void {
    return this.#stream.start();
  }

  retryNow(): void {
    this.#stream.retryNow();
  }

  /** The stream repeats missed facts, requests and lines; presence and samples it does not. */
  async #snapshot(resume: boolean, signal: AbortSignal): Promise<string> {
    const answer = await fetchFleet(signal);
    this.fleet = fromAnswer(answer);
    this.heard_ms = Date.now();
    this.loaded = true;
    void this.loadHistory();
    if (!resume) {
      void this.log.load();
      void this.#loadRequests();
      void this.#loadMarks(answer.at.HERD_EVENTS);
    }
    return answer.resume;
  }

  #receive(messages: Message[]): void {
    this.heard_ms = Date.now();
    let fleet = this.fleet;
    const requests: FinishedRequest[] = [];
    const lines: StoredLine[] = [];
    const marks: Mark[] = [];
    let samples = 0;
    for (const { event, data } of messages) {
      const body: unknown = JSON.parse(data || "{}");
      switch (event) {
        case "fact": {
          const fact = body as RecordedFact;
          fleet = apply(fleet, fact);
          this.#settle(fact);
          const mark = markOf(fact.sequence, fact.event);
          if (mark) marks.push(mark);
          break;
        }
        case "request":
          requests.push(body as FinishedRequest);
          break;
        case "line":
          lines.push(body as StoredLine);
          break;
        case "sample":
          this.curves.add(body as Sample, NAMES);
          samples += 1;
          break;
        case "service":
          fleet = withService(fleet, body as Service);
          break;
        case "gap":
          this.#gap(body as Gap);
          break;
      }
    }
    if (fleet !== this.fleet) this.fleet = fleet;
    if (lines.length > 0) this.log.receive(lines);
    if (requests.length > 0) this.#addRequests(requests);
    if (marks.length > 0) this.#addMarks(marks);
    if (samples > 0) {
      // Twice the range stays, so that a longer one has something to show until its history is there.
      this.curves.trim(Date.now() / 1000 - Math.max(600, 1.1 * this.range_s));
      this.curvesVersion += 1;
    }
  }

  // Requests ----------------------------------------------------------------

  #addRequests(fresh: FinishedRequest[]): void {
    if (this.requestsPaused) {
      this.heldRequests = newestFirst(fresh, this.heldRequests).slice(0, REQUESTS_MOST);
    } else {
      this.requests = newestFirst(fresh, this.requests).slice(0, REQUESTS_MOST);
    }
  }

  pauseRequests(paused: boolean): void {
    this.requestsPaused = paused;
    if (paused) return;
    this.requests = newestFirst(this.heldRequests, this.requests).slice(0, REQUESTS_MOST);
    this.heldRequests = [];
  }

  async #loadRequests(): Promise<void> {
    try {
      const answer = await fetchRequests({ limit: REQUESTS_PAGE });
      // What came live meanwhile is newer than the page and stays.
      const oldest = answer.requests.at(-1)?.id ?? 0;
      this.requests = newestFirst(answer.requests, this.requests.filter(({ id }) => id > oldest));
      this.olderRequests = answer.next;
    } catch {
      // The connection says that the service does not answer; live requests still arrive when it does.
    }
  }

  async loadOlderRequests(): Promise<void> {
    if (this.olderRequests === null) return;
    const answer = await fetchRequests({ limit: REQUESTS_PAGE, before: this.olderRequests });
    this.requests = newestFirst(this.requests, answer.requests);
    this.olderRequests = this.requests.length < REQUESTS_MOST ? answer.next : null;
  }

  // Charts ------------------------------------------------------------------

  async setRange(range_s: number): Promise<void> {
    this.range_s = range_s;
    await this.loadHistory();
  }

  async loadHistory(): Promise<void> {
    const to_s = Date.now() / 1000;
    const names = NAMES.join(",");
    try {
      const history = await fetchHistory({ from_s: to_s - this.range_s, to_s, names, max_points: 900 });
      this.curves.load(history);
      this.historyError = null;
    } catch (error) {
      this.historyError = error instanceof Error ? error.message : String(error);
    }
    this.curvesVersion += 1;
  }

  async #loadMarks(head: number): Promise<void> {
    try {
      const { events } = await fetchEvents(Math.max(0, head - MARKS_BACK), MARKS_BACK);
      this.#addMarks(events.flatMap((event) => markOf(event.sequence, event) ?? []));
    } catch {
      // Charts without marks are charts still.
    }
  }

  #addMarks(fresh: Mark[]): void {
    const known = new Set(this.marks.map(({ sequence }) => sequence));
    this.marks = [...this.marks, ...fresh.filter(({ sequence }) => !known.has(sequence))]
      .sort((a, b) => a.sequence - b.sequence)
      .slice(-MARKS_BACK);
  }

  // Commands ----------------------------------------------------------------

  /** Load or unload; the button stays busy until the fact is there, not only the answer. */
  async command(verb: "load" | "unload", at: { node: string; model: string }): Promise<void> {
    const key = keyOf(at);
    this.refusals = without(this.refusals, key);
    this.pending = { ...this.pending, [key]: { verb, since_ms: Date.now(), sequence: null } };
    try {
      const accepted = await command(verb, at.model, at.node);
      // Nothing will happen, or it has happened already: facts may overtake the answer.
      const nothing = accepted.state === (verb === "load" ? "ready" : "stopped");
      if (nothing || (this.#folded[key] ?? 0) > accepted.sequence) {
        this.pending = without(this.pending, key);
      } else if (this.pending[key]) {
        this.pending = { ...this.pending, [key]: { ...this.pending[key], sequence: accepted.sequence } };
      }
    } catch (error) {
      const id = error instanceof ApiError && error.id ? ` (error ${error.id})` : "";
      this.pending = without(this.pending, key);
      this.refusals = { ...this.refusals, [key]: `${error instanceof Error ? error.message : String(error)}${id}` };
    }
  }

  dismissRefusal(key: string): void {
    this.refusals = without(this.refusals, key);
  }

  /** The command that still waits for its fact; none once the state shows it or patience has run out. */
  pendingFor(model: Model): Pending | null {
    const pending = this.pending[keyOf(model)];
    if (!pending || clock.now_ms - pending.since_ms > PATIENCE_MS) return null;
    return SHOWN[pending.verb].includes(shownInstance(model)?.state ?? "stopped") ? null : pending;
  }

  #settle({ sequence, event }: RecordedFact): void {
    if (!event.type.startsWith("instance.") || !("model" in event)) return;
    const key = keyOf(event);
    this.#folded[key] = sequence;
    const pending = this.pending[key];
    if (pending && pending.sequence !== null && sequence > pending.sequence) {
      this.pending = without(this.pending, key);
    }
  }

  // Gaps --------------------------------------------------------------------

  #gap({ stream, first, last }: Gap): void {
    const missing = last - first + 1;
    const many = `${missing.toLocaleString("en")} ${missing === 1 ? "message" : "messages"}`;
    if (stream === "HERD_LOGS") {
      // The stream could not resend them; the logs service has them, unless the reader is busy elsewhere.
      if (this.log.follow && !this.log.paused) void this.log.load();
      else this.log.markGap(`${many} with log lines are missing here: reload the page to see them`);
    } else if (stream === "HERD_REQUESTS") this.gaps = [...this.gaps, `${many} about requests are no longer kept.`];
    else {
      this.gaps = [...this.gaps, `${many} about the herd are no longer kept; the page has been loaded again.`];
      void fetchFleet().then((answer) => {
        this.fleet = fromAnswer(answer);
      });
    }
  }

  dismissGaps(): void {
    this.gaps = [];
  }
}

function newestFirst(some: FinishedRequest[], others: FinishedRequest[]): FinishedRequest[] {
  const byId = new Map([...some, ...others].map((request) => [request.id, request]));
  return [...byId.values()].sort((a, b) => b.id - a.id);
}

function without<T>(record: Record<string, T>, key: string): Record<string, T> {
  const { [key]: _, ...rest } = record;
  return rest;
}

function markOf(sequence: number, fact: Fact): Mark | null {
  const at_s = fact.at_ns / 1e9;
  switch (fact.type) {
    case "instance.ready.v1":
      return { sequence, at_s, text: `${fact.model} ready`, kind: "good" };
    case "instance.exited.v1":
      return UNASKED.includes(fact.cause)
        ? { sequence, at_s, text: `${fact.model} crashed`, kind: "bad" }
        : { sequence, at_s, text: `${fact.model} unloaded`, kind: "plain" };
    case "instance.failed.v1":
      return { sequence, at_s, text: `${fact.model} failed`, kind: "bad" };
    default:
      return null;
  }
}
