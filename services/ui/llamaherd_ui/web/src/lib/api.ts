/** The HTTP API of the ui service: types as on the wire, and the calls. Mirrors `llamaherd_shared`. */

export type InstanceState = "stopped" | "loading" | "ready" | "draining" | "stopping" | "backoff" | "failed";

export interface Instance {
  index: number;
  state: InstanceState;
  /** When this state began, Unix nanoseconds. */
  since_ns: number;
  pid: number | null;
  host: string;
  port: number;
  generation: number;
  /** Only while loading. */
  stage: string | null;
  /** 0 to 1 over all stages; only while loading. */
  ratio: number | null;
  /** When it is expected to be ready, Unix nanoseconds; only while loading, and when an earlier load tells. */
  ready_at_ns: number | null;
  /** How long the last load took; null before the first. */
  load_s: number | null;
  slots: number;
  /** Context of one slot. */
  context_tokens: number;
  restarts: number;
  restart_at_ns: number | null;
  /** Why it ended last; empty once it was started again. */
  cause: string;
  /** What kind of trouble ended it (docs/faults.md); empty when none is known. */
  fault: string;
  reason: string | null;
  /** What keeps its load from beginning, when that is memory. */
  waits_for: string | null;
  /** Bytes of the node's memory by device, as last measured. */
  uses: Record<string, number>;
  last_lines: string[];
}

export interface Model {
  model: string;
  node: string;
  title: string;
  architecture: string;
  parameters: number;
  size_bytes: number;
  context_tokens: number;
  quantization: string;
  chat: boolean;
  /** Of completion, embedding, rerank, tools, thinking, insert, vision, audio. */
  capabilities: string[];
  path: string;
  /** Path of the file that lets it see or hear; empty without one. */
  projector: string;
  /** Why the file cannot be served; null when it can. */
  rejected: string | null;
  /** Only here: the file is gone, but a process still serves it. */
  removed?: boolean;
  instance: Instance | null;
  /** Its further instances on this node, by index, but those that are stopped. */
  replicas: Instance[];
}

export interface Node {
  node: string;
  version: string;
  cpus: number;
  memory_bytes: number;
  models_dir: string;
  llama_server: string;
  joined_ns: number;
  left_ns: number | null;
  /** For maintenance: it takes no loads. */
  drained: boolean;
}

export interface Service {
  node: string;
  service: string;
  version: string;
  pid: number;
  started_ns: number;
  ready: boolean;
  note: string;
  /** 0 in the message that says it is gone. */
  seen_ns: number;
}

export interface FleetAnswer {
  at: { HERD_EVENTS: number; HERD_REQUESTS: number; HERD_LOGS: number };
  stream_id: string;
  /** Where the stream goes on from this snapshot. */
  resume: string;
  /** Where clients send their requests, ending in /v1. */
  gateway_url?: string | null;
  nodes: Node[];
  models: Model[];
  services: Service[];
}

export interface FinishedRequest {
  /** Grows with time. */
  id: number;
  request_id: string;
  at_ns: number;
  node: string;
  model: string;
  instance: string;
  route: string;
  status: number;
  outcome: "ok" | "error" | "cancelled";
  streamed: boolean;
  error: string | null;
  prompt_tokens: number | null;
  cached_tokens: number | null;
  completion_tokens: number | null;
  prompt_ms: number | null;
  completion_ms: number | null;
  first_token_ms: number | null;
  waited_ms: number;
  total_ms: number;
  bytes_in: number;
  bytes_out: number;
  trace_id: string;
}

export type Level = "debug" | "info" | "warning" | "error";
export const LEVELS: readonly Level[] = ["debug", "info", "warning", "error"];

export interface StoredLine {
  id: number;
  at_ns: number;
  level: Level;
  text: string;
  trace_id: string;
  node: string;
  service: string;
  unit: string;
}

export interface Sample {
  node: string;
  source: string;
  at_ns: number;
  values: Record<string, number>;
}

export interface Series {
  node: string;
  source: string;
  name: string;
  at_s: number[];
  mean: number[];
  minimum: number[];
  maximum: number[];
}

export interface History {
  resolution_s: number;
  series: Series[];
}

export interface Accepted {
  node: string;
  model: string;
  state: InstanceState;
  sequence: number;
}

export interface Gap {
  stream: string;
  first: number;
  last: number;
}

interface InstanceFactBase {
  node: string;
  model: string;
  index?: number;
  at_ns: number;
}

/** msgspec leaves nothing out, but a fact from an older version may lack what was added later. */
export type Fact =
  | (InstanceFactBase & {
      type: "instance.started.v1";
      pid: number;
      host: string;
      port: number;
      generation: number;
      restarts?: number;
    })
  | (InstanceFactBase & { type: "instance.progressed.v1"; stage: string; ratio: number; ready_at_ns?: number | null })
  | (InstanceFactBase & { type: "instance.ready.v1"; load_s: number; slots: number; context_tokens: number })
  | (InstanceFactBase & { type: "instance.waiting.v1"; reason: string })
  | (InstanceFactBase & { type: "instance.measured.v1"; uses: Record<string, number> })
  | (InstanceFactBase & { type: "instance.draining.v1"; cause: string })
  | (InstanceFactBase & { type: "instance.stopping.v1"; cause: string })
  | (InstanceFactBase & {
      type: "instance.exited.v1";
      exit_code?: number | null;
      signal?: string | null;
      cause: string;
      last_lines?: string[];
      restart_at_ns?: number | null;
      fault?: string;
      reason?: string;
    })
  | (InstanceFactBase & { type: "instance.failed.v1"; reason: string; last_lines?: string[]; fault?: string })
  | {
      type: "model.found.v1";
      node: string;
      model: string;
      at_ns: number;
      path: string;
      size_bytes: number;
      modified_ns: number;
      architecture?: string;
      title?: string;
      parameters?: number;
      context_tokens?: number;
      quantization?: string;
      chat?: boolean;
      capabilities?: string[];
      projector?: string;
    }
  | { type: "model.rejected.v1"; node: string; model: string; at_ns: number; path: string; reason: string }
  | { type: "model.removed.v1"; node: string; model: string; at_ns: number }
  | {
      type: "node.joined.v1";
      node: string;
      at_ns: number;
      version: string;
      cpus: number;
      memory_bytes: number;
      models_dir: string;
      llama_server: string;
      drained?: boolean;
    }
  | { type: "node.drained.v1" | "node.resumed.v1"; node: string; at_ns: number }
  | { type: "node.left.v1"; node: string; at_ns: number; cause: string };

/** A fact of a type this page does not know is passed over. */
export interface RecordedFact {
  sequence: number;
  subject: string;
  event: Fact;
}

/** An answer that was not 2xx, in the server's words. */
export class ApiError extends Error {
  readonly status: number;
  readonly kind: string;
  /** Finds the failure in the server's log. */
  readonly id: string | null;

  constructor(message: string, status: number, kind: string, id: string | null) {
    super(message);
    this.status = status;
    this.kind = kind;
    this.id = id;
  }
}

export function address(path: string, query: Record<string, string | number | null | undefined> = {}): URL {
  const url = new URL(`api/v1/${path}`, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, String(value));
  }
  return url;
}

/** Fetch, and turn every refusal into an `ApiError` with the server's sentence. */
export async function ask(url: URL, init: RequestInit = {}): Promise<Response> {
  const answer = await fetch(url, { ...init, cache: "no-store" });
  if (answer.ok) return answer;
  const body: unknown = await answer.json().catch(() => null);
  const error = (body as { error?: { message?: string; kind?: string; id?: string } } | null)?.error;
  throw new ApiError(
    error?.message ?? `The server answered ${answer.status} ${answer.statusText}`.trim(),
    answer.status,
    error?.kind ?? "unavailable",
    error?.id ?? null,
  );
}

async function get<T>(url: URL, signal?: AbortSignal): Promise<T> {
  return (await ask(url, signal ? { signal } : {})).json() as Promise<T>;
}

export const fetchFleet = (signal?: AbortSignal): Promise<FleetAnswer> => get(address("fleet"), signal);

export const fetchRequests = (query: {
  limit: number;
  before?: number;
}): Promise<{ requests: FinishedRequest[]; next: number | null }> => get(address("requests", query));

export interface LineQuery {
  text?: string;
  min_level?: Level;
  service?: string;
  unit?: string;
  before?: number;
  after?: number;
  limit: number;
}

export const fetchLines = (query: LineQuery, signal?: AbortSignal): Promise<{ lines: StoredLine[]; dropped: number }> =>
  get(address("logs", { ...query }), signal);

export const fetchHistory = (query: {
  from_s: number;
  to_s: number;
  source?: string;
  names?: string;
  max_points: number;
}): Promise<History> => get(address("metrics", query));

export type RawEvent = Fact & { sequence: number; subject: string };

export const fetchEvents = (after: number, limit: number): Promise<{ events: RawEvent[]; next: number | null }> =>
  get(address("events", { after, limit }));

export async function command(verb: "load" | "unload", model: string, node: string): Promise<Accepted> {
  const url = address(`models/${encodeURIComponent(model)}/${verb}`, { node });
  return (await ask(url, { method: "POST" })).json() as Promise<Accepted>;
}
