// Equity, drawdown and latency (uPlot).
import uPlot from "uplot";
import type { AlignedData, Options } from "uplot";
import type { Store } from "./store";
import { money } from "./format";
import type { Theme } from "./theme";

const MOST_DRAWN = 4000;
const HEIGHT = 150;

interface Spec {
  box: HTMLElement;
  note: HTMLElement;
  label: string;
  colour: (theme: Theme) => string;
  fill: boolean;
  data: (store: Store) => [number[], number[]];
  say: (values: number[]) => string;
}

export class Plots {
  private plots: { spec: Spec; plot: uPlot; key: string }[] = [];

  constructor(private readonly store: Store, private readonly specs: Spec[], theme: Theme) {
    this.paint(theme);
    const observer = new ResizeObserver(() => {
      for (const { spec, plot } of this.plots) {
        if (spec.box.clientWidth > 0) plot.setSize({ width: spec.box.clientWidth, height: HEIGHT });
      }
    });
    for (const spec of specs) observer.observe(spec.box);
  }

  paint(theme: Theme): void {
    for (const { plot } of this.plots) plot.destroy();
    this.plots = this.specs.map((spec) => ({
      spec, key: "", plot: new uPlot(options(spec, theme), [[], []], spec.box),
    }));
    this.draw();
  }

  draw(): void {
    for (const entry of this.plots) {
      const [x, y] = entry.spec.data(this.store);
      const key = `${this.store.redraws} ${x.length} ${x.at(-1)}`;
      if (key === entry.key) continue;
      entry.key = key;
      entry.spec.box.hidden = y.length === 0;
      entry.plot.setData(thin(x, y));
      entry.spec.note.textContent = y.length ? entry.spec.say(y) : "nothing yet";
    }
  }
}

export function equitySpec(box: HTMLElement, note: HTMLElement): Spec {
  return { box, note, label: "Equity", colour: (t) => t.accent, fill: false,
    data: (s) => [s.equity.map((p) => p.ts_ns / 1e9), s.equity.map((p) => p.equity)],
    say: (y) => `${money(y.at(-1) ?? 0)} (${money((y.at(-1) ?? 0) - (y[0] ?? 0), true)} since the start)` };
}

/** Hour and minute; the day at midnight and where the marks are days apart. */
function moment(time: number, all: number[]): string {
  const text = new Date(time * 1e3).toISOString();
  const days = (all[1] ?? 0) - (all[0] ?? 0) >= 86_400;
  return days || text.slice(11, 16) === "00:00" ? text.slice(5, 10) : text.slice(11, 16);
}

export function drawdownSpec(box: HTMLElement, note: HTMLElement): Spec {
  return { box, note, label: "Drawdown %", colour: (t) => t.down, fill: true,
    data: (s) => [s.equity.map((p) => p.ts_ns / 1e9), drawdown(s.equity.map((p) => p.equity))],
    say: (y) => `${(y.at(-1) ?? 0).toFixed(2)} % now, ${y.reduce((a, b) => Math.min(a, b), 0).toFixed(2)} % at worst` };
}

export function latencySpec(box: HTMLElement, note: HTMLElement): Spec {
  return { box, note, label: "Milliseconds", colour: (t) => t.accent, fill: false,
    data: (s) => [s.latency.map((p) => p.ts_ns / 1e9), s.latency.map((p) => p.ms)],
    say: (y) => {
      const sorted = y.slice(-1000).sort((a, b) => a - b);
      const at = (q: number): string => (sorted[Math.floor((sorted.length - 1) * q)] ?? 0).toFixed(2);
      return `p50 ${at(0.5)} ms, p99 ${at(0.99)} ms of the last ${sorted.length} decisions`;
    } };
}

function drawdown(equity: number[]): number[] {
  let peak = -Infinity;
  return equity.map((value) => {
    peak = Math.max(peak, value);
    return peak > 0 ? 100 * (value / peak - 1) : 0;
  });
}

/** At most MOST_DRAWN points: per stretch its lowest and its highest, so that no spike is lost. */
function thin(x: number[], y: number[]): AlignedData {
  if (x.length <= MOST_DRAWN) return [x, y];
  const stride = Math.ceil((2 * x.length) / MOST_DRAWN);
  const keep: number[] = [];
  for (let from = 0; from < x.length; from += stride) {
    let low = from, high = from;
    for (let i = from; i < Math.min(from + stride, x.length); i++) {
      if ((y[i] as number) < (y[low] as number)) low = i;
      if ((y[i] as number) > (y[high] as number)) high = i;
    }
    keep.push(...(low === high ? [low] : [Math.min(low, high), Math.max(low, high)]));
  }
  return [keep.map((i) => x[i] as number), keep.map((i) => y[i] as number)];
}

function options(spec: Spec, theme: Theme): Options {
  const axis = { stroke: theme.muted, grid: { stroke: theme.grid, width: 1 }, ticks: { stroke: theme.grid, width: 1 } };
  const stroke = spec.colour(theme);
  return {
    width: Math.max(spec.box.clientWidth, 100), height: HEIGHT, legend: { show: false },
    tzDate: (ts) => uPlot.tzDate(new Date(ts * 1e3), "Etc/UTC"),
    cursor: { drag: { x: true, y: false } },
    axes: [{ ...axis, values: (_, times) => times.map((t) => moment(t, times)) }, { ...axis, size: 64 }],
    series: [{}, { label: spec.label, stroke, width: 1.5, points: { show: false },
      ...(spec.fill ? { fill: `${stroke}33` } : {}) }],
  };
}
