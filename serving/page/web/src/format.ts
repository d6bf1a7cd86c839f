// Values in words. Times are UTC throughout.
import type { Decision } from "./types";

export function clock(ts_ns: number): string {
  const text = new Date(ts_ns / 1e6).toISOString();
  return `${text.slice(0, 10)} ${text.slice(11, 19)}`;
}

export function side(direction: number): string {
  return direction > 0 ? "long" : direction < 0 ? "short" : "none";
}

export function fixed(value: unknown, digits: number): string {
  return typeof value === "number" && Number.isFinite(value) ? value.toFixed(digits) : "–";
}

export function percent(value: unknown, digits = 1): string {
  return typeof value === "number" && Number.isFinite(value) ? `${(100 * value).toFixed(digits)} %` : "–";
}

export function money(value: number, signed = false): string {
  const text = Math.abs(value).toLocaleString("en-GB", { maximumFractionDigits: 0 });
  return value < 0 ? `−${text}` : signed ? `+${text}` : text;
}

/** LOW_CONFIDENCE -> low confidence */
export function words(reason: string): string {
  return reason.toLowerCase().replaceAll("_", " ");
}

export function describe(d: Decision): string {
  const verdict = d.verdict === d.reason ? words(d.verdict) : `${words(d.verdict)}: ${words(d.reason)}`;
  const limit = d.proposal && d.proposal.limit !== "NONE" ? `, limit ${words(d.proposal.limit)}` : "";
  return `${clock(d.ts_ns)} · ${verdict} · ${side(d.direction)} · confidence ${percent(d.confidence)}${limit}`;
}
