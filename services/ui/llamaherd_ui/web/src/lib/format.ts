/** Numbers and times as people read them. Pure; every input carries its unit in its name. */

const count = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const moment = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const formatCount = (value: number): string => count.format(value);

/** 3 significant digits at most, binary units: 4.1 MiB. */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (Math.abs(value) >= 1023.5 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${short(value)} ${units[unit]}`;
}

/** 1.2 B, 350 M, 940 k weights. */
export function formatParameters(parameters: number): string {
  if (parameters >= 1e9) return `${short(parameters / 1e9)} B`;
  if (parameters >= 1e6) return `${short(parameters / 1e6)} M`;
  if (parameters >= 1e3) return `${short(parameters / 1e3)} k`;
  return String(parameters);
}

const short = (value: number): string => (value >= 99.95 ? Math.round(value).toString() : value.toFixed(1).replace(/\.0$/, ""));

/** 0.4 ms, 850 ms, 2.4 s, 3 min 05 s, 2 h 05 min. */
export function formatDuration(ms: number): string {
  if (ms < 0.95) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(ms < 9_950 ? 2 : 1)} s`;
  return formatAge(ms);
}

/** Whole seconds, for what counts on the screen: 12 s, 3 min 05 s. */
export function formatAge(ms: number): string {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${pad(s % 60)} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${pad(Math.floor((s % 3600) / 60))} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** As coarse as a glance needs: 12 s, 51 min, 3 h, 5 d. */
export function formatRough(ms: number): string {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 2 * 86_400) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86_400)} d`;
}

const pad = (value: number): string => String(value).padStart(2, "0");

export const formatPercent = (pct: number): string => `${pct.toFixed(pct < 9.95 ? 1 : 0)} %`;

export const formatTime = (at_ns: number): string => clock.format(at_ns / 1e6);
export const formatMoment = (at_ns: number): string => moment.format(at_ns / 1e6);

/** Tokens per second of the answer; null when llama-server did not say. */
export function tokensPerSecond(request: {
  completion_tokens: number | null;
  completion_ms: number | null;
}): number | null {
  const { completion_tokens, completion_ms } = request;
  return completion_tokens !== null && completion_ms ? (completion_tokens * 1000) / completion_ms : null;
}

// eslint-disable-next-line no-control-regex
const ANSI = /\u001b\[[0-9;?]*[ -/]*[@-~]/g;

/** Terminal colours mean nothing here. */
export const plain = (text: string): string => text.replace(ANSI, "");
