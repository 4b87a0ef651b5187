import { describe, expect, test } from "vitest";
import type { Fact, FleetAnswer, InstanceState } from "./api";
import { EMPTY, apply, evolve, fromAnswer, shownInstance, withService, type Fleet } from "./fleet";

const at = { node: "ada", model: "cria" };
const found: Fact = { type: "model.found.v1", ...at, at_ns: 1, path: "/m/cria.gguf", size_bytes: 10, modified_ns: 0 };
const started: Fact = {
  type: "instance.started.v1", ...at, index: 0, at_ns: 2, pid: 7, host: "127.0.0.1", port: 4000, generation: 1, restarts: 0,
};
const ready: Fact = { type: "instance.ready.v1", ...at, at_ns: 3, load_s: 0.5, slots: 4, context_tokens: 512 };
const crashed: Fact = {
  type: "instance.exited.v1", ...at, at_ns: 4, signal: "SIGSEGV", cause: "crash", last_lines: ["boom"], restart_at_ns: 9,
};
const unloaded: Fact = { type: "instance.exited.v1", ...at, at_ns: 5, exit_code: 0, cause: "unload" };
const failed: Fact = { type: "instance.failed.v1", ...at, at_ns: 6, reason: "too often", last_lines: [] };

const after = (...facts: Fact[]): Fleet => facts.reduce(evolve, EMPTY);
const replicasOf = (fleet: Fleet): string[] => (fleet.models[0]?.replicas ?? []).map((each) => `${each.index} ${each.state}`);
const stateOf = (fleet: Fleet): InstanceState | undefined => fleet.models[0]?.instance?.state;

test("a model is shown with what it can and the file it sees with", () => {
  const seeing: Fact = { ...found, capabilities: ["completion", "vision"], projector: "/m/mmproj.gguf" };

  expect(after(seeing).models[0]).toMatchObject({ capabilities: ["completion", "vision"], projector: "/m/mmproj.gguf" });
  expect(after(found).models[0]?.capabilities).toEqual([]);
});

describe("an instance", () => {
  test.each<[string, Fact[], InstanceState]>([
    ["is loading once it was spawned", [found, started], "loading"],
    ["is ready when it says so", [found, started, ready], "ready"],
    ["waits to restart after a crash", [found, started, ready, crashed], "backoff"],
    ["has failed when given up", [found, started, crashed, failed], "failed"],
    ["is stopped after an unload", [found, started, ready, unloaded], "stopped"],
    ["can be spawned again after it failed", [found, started, failed, started], "loading"],
  ])("%s", (_, facts, state) => {
    expect(stateOf(after(...facts))).toBe(state);
  });

  test("tells when it will be ready, only while it loads", () => {
    const going: Fact = { type: "instance.progressed.v1", ...at, at_ns: 3, stage: "weights", ratio: 0.5, ready_at_ns: 8 };

    expect(after(found, started, going).models[0]?.instance).toMatchObject({ ratio: 0.5, ready_at_ns: 8 });
    expect(after(found, started, { ...going, ready_at_ns: null }).models[0]?.instance?.ready_at_ns).toBeNull();
    expect(after(found, started, going, ready).models[0]?.instance?.ready_at_ns).toBeNull();
  });

  test("tells what its load waits for until it begins, and what it uses until it ends", () => {
    const waiting: Fact = { type: "instance.waiting.v1", ...at, at_ns: 1, reason: "big, which is at work" };
    const measured: Fact = { type: "instance.measured.v1", ...at, at_ns: 5, uses: { ram: 5_000_000 } };

    expect(after(found, waiting).models[0]?.instance?.waits_for).toBe("big, which is at work");
    expect(after(found, waiting, started).models[0]?.instance?.waits_for).toBeNull();
    expect(after(found, started, ready, measured).models[0]?.instance?.uses).toEqual({ ram: 5_000_000 });
    expect(after(found, started, ready, measured, unloaded).models[0]?.instance?.uses).toEqual({});
  });

  test("tells why it is gone only when nobody asked", () => {
    expect(after(found, started, crashed).models[0]?.instance?.reason).toBe("llama-server was ended by SIGSEGV");
    expect(after(found, started, unloaded).models[0]?.instance?.reason).toBeNull();
  });

  test("says that the exit code of an adopted one is unknown", () => {
    const ended: Fact = { ...crashed, signal: null, exit_code: null };
    expect(after(found, started, ended).models[0]?.instance?.reason).toBe("llama-server ended (exit code unknown)");
  });

  test("tells why it crashed in the supervisor's words", () => {
    const full: Fact = { ...crashed, signal: null, exit_code: 1, fault: "out_of_memory", reason: "memory is full" };
    const shown = after(found, started, full).models[0]?.instance;

    expect([shown?.cause, shown?.fault, shown?.reason]).toEqual(["crash", "out_of_memory", "memory is full"]);
    expect(after(found, started, full, started).models[0]?.instance?.reason).toBeNull();
  });

  test.each(["unload", "cancelled", "reload", "evicted for llama"])("was ended on purpose: %s", (cause) => {
    const ended = { ...unloaded, cause } as Fact;

    expect(after(found, started, ready, ended).models[0]?.instance?.reason).toBeNull();
  });

  test("keeps the last lines of the crash when it is given up", () => {
    expect(after(found, started, crashed, failed).models[0]?.instance?.last_lines).toEqual(["boom"]);
  });

  test("remembers how long it took to load", () => {
    expect(after(found, started, ready, unloaded, started).models[0]?.instance?.load_s).toBe(0.5);
  });
});

describe("a model", () => {
  test("disappears with its file", () => {
    expect(after(found, { type: "model.removed.v1", ...at, at_ns: 2 }).models).toEqual([]);
  });

  test("stays without its file while a process serves it, and goes with the process", () => {
    const removed: Fact = { type: "model.removed.v1", ...at, at_ns: 4 };
    expect(after(found, started, ready, removed).models).toHaveLength(1);
    expect(after(found, started, ready, removed, unloaded).models).toEqual([]);
  });
});

test("facts that were in the snapshot are not folded twice", () => {
  const fleet: Fleet = { ...after(found, started, ready), sequence: 5 };
  expect(apply(fleet, { sequence: 5, subject: "", event: crashed })).toBe(fleet);
  expect(stateOf(apply(fleet, { sequence: 6, subject: "", event: crashed }))).toBe("backoff");
});

test("a fact of an unknown type changes nothing but the place in the log", () => {
  const strange = { type: "alert.raised.v1", at_ns: 1 } as unknown as Fact;
  expect(apply(EMPTY, { sequence: 3, subject: "", event: strange })).toEqual({ ...EMPTY, sequence: 3 });
});

test("a service last seen at 0 is gone", () => {
  const beat = { node: "ada", service: "logs", version: "1", pid: 1, started_ns: 1, ready: true, note: "", seen_ns: 9 };
  const seen = withService(EMPTY, beat);
  expect(seen.services).toHaveLength(1);
  expect(withService(seen, { ...beat, seen_ns: 0 }).services).toEqual([]);
});

test("a snapshot stands where the events stand", () => {
  const answer: FleetAnswer = {
    at: { HERD_EVENTS: 12, HERD_REQUESTS: 3, HERD_LOGS: 4096 },
    stream_id: "abc", resume: "abc:12.3.4096", nodes: [], models: [], services: [],
  };
  expect(fromAnswer(answer).sequence).toBe(12);
});

test("the instances of a model are kept apart", () => {
  const second: Fact = { ...started, index: 1 };
  expect(stateOf(after(found, started, ready, second))).toBe("ready");
  expect(replicasOf(after(found, started, ready, second))).toEqual(["1 loading"]);
  expect(replicasOf(after(found, started, ready, second, { ...ready, index: 1 }))).toEqual(["1 ready"]);
  expect(replicasOf(after(found, started, ready, second, { ...unloaded, index: 1 }))).toEqual([]);
});

test("a model is shown as ready while any of its instances is", () => {
  const model = after(found, started, { ...started, index: 1 }, { ...ready, index: 1 }).models[0];
  expect(model && shownInstance(model)?.index).toBe(1);
});

test("a node is drained until it is resumed", () => {
  const joined: Fact = {
    type: "node.joined.v1", node: "ada", at_ns: 1, version: "1", cpus: 2, memory_bytes: 3, models_dir: "/m", llama_server: "",
  };
  const drained: Fact = { type: "node.drained.v1", node: "ada", at_ns: 2 };
  const resumed: Fact = { type: "node.resumed.v1", node: "ada", at_ns: 3 };
  expect(after(joined).nodes[0]?.drained).toBe(false);
  expect(after(joined, drained).nodes[0]?.drained).toBe(true);
  expect(after(joined, drained, resumed).nodes[0]?.drained).toBe(false);
});
