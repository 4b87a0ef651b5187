/**
 * The live stream of the herd: opens it, reads it, and opens it again for ever.
 *
 * Not EventSource: behind a proxy one 502 ends its reconnection for good, and it hides both comments
 * (which tell that an idle stream is alive) and refusals (which tell why).
 */

import { address, ask } from "./api";
import { SseParser, type Message } from "./sse";

export type Connection =
  | { phase: "connecting" }
  | { phase: "catching up"; since_ms: number }
  | { phase: "live"; since_ms: number }
  | { phase: "offline"; since_ms: number; retry_at_ms: number; reason: string }
  | { phase: "asleep" };

export interface Hooks {
  /** Load a snapshot; answers the id to go on from. With `resume`, only what the stream does not repeat. */
  snapshot: (resume: boolean, signal: AbortSignal) => Promise<string>;
  /** Every message of one chunk, in order. */
  messages: (messages: Message[]) => void;
  connection: (connection: Connection) => void;
}

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
/** Gentle: a service that is restarted is back within seconds, and the page should see it then. */
const GROWTH = 1.5;
/** The server comments every 15 s; two missed comments and slack mean the line is dead. */
const SILENCE_MS = 40_000;
/** A snapshot or the head of a stream that takes longer will not come. */
const ANSWER_MS = 15_000;
/** Told to start over so soon after the last time: something is wrong, no need to hurry. */
const RESET_MS = 2000;
/** A hidden tab gives its connection back: browsers allow about six per origin. */
const HIDDEN_MS = 30_000;
/** So long without a repeated event means that the past has been read. */
const QUIET_MS = 250;

/** How long to wait before attempt `attempt` (from 1); `jitter` is 0 to 1. */
export function backoffMs(attempt: number, jitter: number): number {
  const full = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * GROWTH ** (attempt - 1));
  return Math.round(full * (0.75 + 0.25 * jitter));
}

/** Browsers say "Failed to fetch" or "network error" when there is nobody. */
function inWords(error: unknown): string {
  if (error instanceof TypeError) return "no connection";
  if (error instanceof DOMException && error.name === "TimeoutError") return "no answer in time";
  return error instanceof Error ? error.message : String(error);
}

export class HerdStream {
  readonly #hooks: Hooks;
  #lastId: string | null = null;
  #stopped = false;
  #abort = new AbortController();
  #wake: () => void = () => {};
  #hiddenTimer: ReturnType<typeof setTimeout> | undefined;

  constructor(hooks: Hooks) {
    this.#hooks = hooks;
  }

  start(): () => void {
    const online = (): void => this.#wake();
    const visible = (): void => this.#seen();
    window.addEventListener("online", online);
    document.addEventListener("visibilitychange", visible);
    void this.#run();
    return () => {
      this.#stopped = true;
      window.removeEventListener("online", online);
      document.removeEventListener("visibilitychange", visible);
      clearTimeout(this.#hiddenTimer);
      this.#abort.abort();
      this.#wake();
    };
  }

  /** Try now instead of when the wait is over. */
  retryNow(): void {
    this.#wake();
  }

  #seen(): void {
    clearTimeout(this.#hiddenTimer);
    if (document.visibilityState === "hidden") {
      this.#hiddenTimer = setTimeout(() => this.#abort.abort(new DOMException("hidden", "AbortError")), HIDDEN_MS);
    } else {
      this.#wake();
    }
  }

  async #run(): Promise<void> {
    let attempt = 0;
    let lost_ms = 0;
    let reset_ms = -Infinity;
    this.#hooks.connection({ phase: "connecting" });
    while (!this.#stopped) {
      let reason = "the server closed the stream";
      try {
        this.#abort = new AbortController();
        const resume = this.#lastId !== null;
        const patience = AbortSignal.timeout(ANSWER_MS);
        const id = await this.#hooks.snapshot(resume, AbortSignal.any([this.#abort.signal, patience]));
        this.#lastId ??= id;
        const why = await this.#read(() => {
          attempt = 0;
          lost_ms = 0;
        });
        if (why === "reset") {
          this.#lastId = null;
          const hurry = performance.now() - reset_ms > RESET_MS;
          reset_ms = performance.now();
          if (hurry) {
            this.#hooks.connection({ phase: "connecting" });
            continue;
          }
          reason = "the service told this page to start over";
        }
        if (why === "restarting") reason = "the service is restarting";
      } catch (error) {
        reason = inWords(error);
      }
      this.#abort.abort();
      if (this.#stopped) return;
      if (document.visibilityState === "hidden" && this.#hiddenTimer !== undefined && attempt === 0) {
        this.#hooks.connection({ phase: "asleep" });
        await this.#woken(null);
        continue;
      }
      attempt += 1;
      lost_ms ||= Date.now();
      const wait_ms = backoffMs(attempt, Math.random());
      this.#hooks.connection({ phase: "offline", since_ms: lost_ms, retry_at_ms: Date.now() + wait_ms, reason });
      await this.#woken(wait_ms);
    }
  }

  /** Read one stream to its end. `opened` is called when the server took the request. */
  async #read(opened: () => void): Promise<"closed" | "reset" | "restarting"> {
    const { signal } = this.#abort;
    const query = { after: this.#lastId, topics: "fleet,requests,logs,metrics" };
    let silence = setTimeout(() => this.#abort.abort(new Error("the service does not answer")), ANSWER_MS);
    const answer = await ask(address("stream", query), { signal, headers: { Accept: "text/event-stream" } }).catch((error: unknown) => {
      clearTimeout(silence);
      throw error;
    });
    if (!answer.body) throw new Error("the server sent no stream");
    opened();
    const since_ms = Date.now();
    this.#hooks.connection({ phase: "catching up", since_ms });
    const goLive = (): void => {
      if (!signal.aborted) this.#hooks.connection({ phase: "live", since_ms });
    };
    let live = false;
    let quiet = setTimeout(() => {
      live = true;
      goLive();
    }, QUIET_MS);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = new SseParser();
    try {
      for (;;) {
        clearTimeout(silence);
        silence = setTimeout(() => this.#abort.abort(new Error("the stream fell silent")), SILENCE_MS);
        const { done, value } = await reader.read();
        if (done) return "closed";
        const messages = parser.feed(value);
        const end = messages.findIndex(({ event }) => event === "reset" || event === "restarting");
        const usable = end < 0 ? messages : messages.slice(0, end);
        for (const { id } of usable) if (id) this.#lastId = id;
        if (usable.length > 0) this.#hooks.messages(usable);
        if (end >= 0) return messages[end]?.event === "reset" ? "reset" : "restarting";
        if (!live && usable.some(({ id }) => id)) {
          clearTimeout(quiet);
          quiet = setTimeout(() => {
            live = true;
            goLive();
          }, QUIET_MS);
        }
      }
    } finally {
      clearTimeout(silence);
      clearTimeout(quiet);
      reader.cancel().catch(() => {});
    }
  }

  /** Wait, at most `wait_ms` (null: for ever), or until something wakes us. */
  #woken(wait_ms: number | null): Promise<void> {
    return new Promise((resolve) => {
      const timer = wait_ms === null ? undefined : setTimeout(done, wait_ms);
      function done(): void {
        clearTimeout(timer);
        resolve();
      }
      this.#wake = done;
    });
  }
}
