/** What the herd looks like, folded from facts. Pure: no clock, no network. Evolve never refuses. */

import type { Fact, FleetAnswer, Instance, InstanceState, Model, Node, RecordedFact, Service } from "./api";

export interface Fleet {
  /** Last sequence of HERD_EVENTS folded in. */
  sequence: number;
  nodes: Node[];
  models: Model[];
  services: Service[];
  gateway_url: string | null;
}

export const EMPTY: Fleet = { sequence: 0, nodes: [], models: [], services: [], gateway_url: null };

export function fromAnswer(answer: FleetAnswer): Fleet {
  return {
    sequence: answer.at.HERD_EVENTS,
    nodes: answer.nodes,
    models: sorted(answer.models),
    services: answer.services,
    gateway_url: answer.gateway_url ?? null,
  };
}

/** (node, model) names a row, with all instances of the model there. */
export const keyOf = (at: { node: string; model: string }): string => `${at.node}/${at.model}`;

/** Fold what is newer than the fleet; what is not newer was in the snapshot and is skipped. */
export function apply(fleet: Fleet, recorded: RecordedFact): Fleet {
  if (recorded.sequence <= fleet.sequence) return fleet;
  return { ...evolve(fleet, recorded.event), sequence: recorded.sequence };
}

export function evolve(fleet: Fleet, fact: Fact): Fleet {
  switch (fact.type) {
    case "node.joined.v1": {
      const { type: _, at_ns, ...rest } = fact;
      const joined: Node = { ...rest, drained: fact.drained ?? false, joined_ns: at_ns, left_ns: null };
      return { ...fleet, nodes: [...fleet.nodes.filter((node) => node.node !== fact.node), joined] };
    }
    case "node.drained.v1":
    case "node.resumed.v1":
      return withNode(fleet, fact.node, { drained: fact.type === "node.drained.v1" });
    case "node.left.v1":
      return withNode(fleet, fact.node, { left_ns: fact.at_ns });
    case "model.found.v1":
      return withModel(fleet, fact, (model) => ({
        ...model,
        title: fact.title ?? "",
        architecture: fact.architecture ?? "",
        parameters: fact.parameters ?? 0,
        size_bytes: fact.size_bytes,
        context_tokens: fact.context_tokens ?? 0,
        quantization: fact.quantization ?? "",
        chat: fact.chat ?? false,
        capabilities: fact.capabilities ?? [],
        path: fact.path,
        projector: fact.projector ?? "",
        rejected: null,
        removed: false,
      }));
    case "model.rejected.v1":
      return withModel(fleet, fact, (model) => ({ ...model, path: fact.path, rejected: fact.reason, removed: false }));
    case "model.removed.v1":
      return withoutDeparted(withModel(fleet, fact, (model) => ({ ...model, removed: true })));
    default:
      // A fact about an instance; or one from a newer herd, which changes nothing here.
      return fact.type?.startsWith("instance.")
        ? withoutDeparted(
            withModel(fleet, fact, (model) => withInstance(model, fact)),
          )
        : fleet;
  }
}

/** What a row shows: the first instance, or one that takes requests while that does not. */
export function shownInstance(model: Model): Instance | null {
  if (model.instance?.state === "ready") return model.instance;
  return model.replicas.find((replica) => replica.state === "ready") ?? model.instance;
}

function withNode(fleet: Fleet, name: string, change: Partial<Node>): Fleet {
  return { ...fleet, nodes: fleet.nodes.map((node) => (node.node === name ? { ...node, ...change } : node)) };
}

function withInstance(model: Model, fact: InstanceFact): Model {
  const index = fact.index ?? 0;
  if (index === 0) return { ...model, instance: evolveInstance(model.instance, fact) };
  const before = model.replicas.find((replica) => replica.index === index) ?? null;
  const after = evolveInstance(before, fact);
  const others = model.replicas.filter((replica) => replica.index !== index);
  const replicas = after.state === "stopped" ? others : [...others, after].sort((a, b) => a.index - b.index);
  return { ...model, replicas };
}

type InstanceFact = Extract<Fact, { type: `instance.${string}` }>;

const NEVER_RUN: Instance = {
  index: 0,
  state: "stopped",
  since_ns: 0,
  pid: null,
  host: "",
  port: 0,
  generation: 0,
  stage: null,
  ratio: null,
  ready_at_ns: null,
  load_s: null,
  slots: 0,
  context_tokens: 0,
  restarts: 0,
  restart_at_ns: null,
  cause: "",
  fault: "",
  reason: null,
  waits_for: null,
  uses: {},
  last_lines: [],
};

export function evolveInstance(before: Instance | null, fact: InstanceFact): Instance {
  const old = before ?? { ...NEVER_RUN, index: fact.index ?? 0 };
  const loading = { stage: null, ratio: null, ready_at_ns: null };
  const to = (state: InstanceState): Instance => ({ ...old, ...loading, state, since_ns: fact.at_ns });
  const withoutProcess = { pid: null, host: "", port: 0, slots: 0, restart_at_ns: null, waits_for: null, uses: {} };
  switch (fact.type) {
    case "instance.started.v1":
      return {
        ...NEVER_RUN,
        index: old.index,
        state: "loading",
        since_ns: fact.at_ns,
        pid: fact.pid,
        host: fact.host,
        port: fact.port,
        generation: fact.generation,
        stage: "spawn",
        ratio: 0,
        load_s: old.load_s,
        restarts: fact.restarts ?? 0,
      };
    case "instance.progressed.v1":
      return old.state === "loading"
        ? { ...old, stage: fact.stage, ratio: fact.ratio, ready_at_ns: fact.ready_at_ns ?? null }
        : old;
    case "instance.ready.v1":
      return { ...to("ready"), load_s: fact.load_s, slots: fact.slots, context_tokens: fact.context_tokens };
    case "instance.waiting.v1":
      return { ...old, waits_for: fact.reason };
    case "instance.measured.v1":
      return { ...old, uses: fact.uses };
    case "instance.draining.v1":
      return to("draining");
    case "instance.stopping.v1":
      return to("stopping");
    case "instance.exited.v1": {
      const restart_at_ns = fact.restart_at_ns ?? null;
      return {
        ...to(restart_at_ns === null ? "stopped" : "backoff"),
        ...withoutProcess,
        restart_at_ns,
        cause: fact.cause,
        fault: fact.fault ?? "",
        reason: exitReason(fact),
        last_lines: fact.last_lines ?? [],
      };
    }
    case "instance.failed.v1":
      return {
        ...to("failed"),
        ...withoutProcess,
        fault: fact.fault ?? "",
        reason: fact.reason,
        last_lines: fact.last_lines?.length ? fact.last_lines : old.last_lines,
      };
    default:
      return old;
  }
}

/** Causes of an exit that nobody wanted; of any other one somebody said that it should be. */
export const UNASKED: readonly string[] = ["crash", "unhealthy", "supervisor_lost"];

/** One sentence on an exit nobody asked for; null when somebody did. */
function exitReason(fact: Extract<Fact, { type: "instance.exited.v1" }>): string | null {
  if (!UNASKED.includes(fact.cause)) return null;
  if (fact.reason) return fact.reason;
  if (fact.cause === "supervisor_lost") return "the process was gone when the supervisor came back";
  const how = fact.signal
    ? `was ended by ${fact.signal}`
    : typeof fact.exit_code === "number"
      ? `exited with code ${fact.exit_code}`
      : "ended (exit code unknown)";
  return fact.cause === "crash" ? `llama-server ${how}` : `llama-server ${how} (${fact.cause})`;
}

/** A model whose file is gone stays while a process serves it. */
function withoutDeparted(fleet: Fleet): Fleet {
  return fleet.models.some(isDeparted) ? { ...fleet, models: fleet.models.filter((model) => !isDeparted(model)) } : fleet;
}

const isDeparted = (model: Model): boolean =>
  model.removed === true && [model.instance, ...model.replicas].every((each) => (each?.pid ?? null) === null);

function withModel(fleet: Fleet, at: { node: string; model: string }, change: (model: Model) => Model): Fleet {
  const key = keyOf(at);
  const known = fleet.models.some((model) => keyOf(model) === key);
  const models = known
    ? fleet.models.map((model) => (keyOf(model) === key ? change(model) : model))
    : sorted([...fleet.models, change(unheardOf(at.node, at.model))]);
  return { ...fleet, models };
}

function unheardOf(node: string, model: string): Model {
  return {
    model,
    node,
    title: "",
    architecture: "",
    parameters: 0,
    size_bytes: 0,
    context_tokens: 0,
    quantization: "",
    chat: false,
    capabilities: [],
    path: "",
    projector: "",
    rejected: null,
    instance: null,
    replicas: [],
  };
}

/** By name, then node: an order that no state change disturbs. */
function sorted(models: Model[]): Model[] {
  return [...models].sort((a, b) => a.model.localeCompare(b.model, "en") || a.node.localeCompare(b.node, "en"));
}

/** Presence changed; a service last seen at 0 is gone. */
export function withService(fleet: Fleet, seen: Service): Fleet {
  const others = fleet.services.filter((one) => one.node !== seen.node || one.service !== seen.service);
  return { ...fleet, services: seen.seen_ns === 0 ? others : [...others, seen] };
}
