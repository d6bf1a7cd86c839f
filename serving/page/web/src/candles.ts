// Candles with decisions, fills, stops and targets (lightweight-charts).
import {
  CandlestickSeries, ColorType, CrosshairMode, LineSeries, LineStyle, LineType, createChart, createSeriesMarkers,
} from "lightweight-charts";
import type {
  IChartApi, ISeriesApi, ISeriesMarkersPluginApi, LineData, SeriesMarker, Time, UTCTimestamp, WhitespaceData,
} from "lightweight-charts";
import type { Level, Store } from "./store";
import { seconds } from "./store";
import { describe, money } from "./format";
import type { Theme } from "./theme";

const MOST_MARKERS = 1500;
const CLEAR = "rgba(0,0,0,0)";

type Point = LineData<Time> | WhitespaceData<Time>;

export class CandleChart {
  private readonly chart: IChartApi;
  private readonly candles: ISeriesApi<"Candlestick">;
  private readonly stops: ISeriesApi<"Line">;
  private readonly targets: ISeriesApi<"Line">;
  private readonly markers: ISeriesMarkersPluginApi<Time>;
  private drawn = -1;
  private length = 0;
  private counted = "";
  private theme: Theme;
  showRejected = true;

  constructor(box: HTMLElement, private readonly legend: HTMLElement, private readonly store: Store, theme: Theme) {
    this.theme = theme;
    this.chart = createChart(box, {
      autoSize: true,
      crosshair: { mode: CrosshairMode.Normal },
      timeScale: { timeVisible: true, secondsVisible: false, rightOffset: 4 },
      // its logo brings a style sheet of its own, which the page's policy forbids: the footer names the maker
      layout: { attributionLogo: false, fontFamily: "system-ui, sans-serif" },
    });
    this.candles = this.chart.addSeries(CandlestickSeries, { priceLineVisible: true });
    const level = { lineWidth: 1, lineType: LineType.WithSteps, lineStyle: LineStyle.Dashed,
      priceLineVisible: false, lastValueVisible: false, crosshairMarkerVisible: false } as const;
    this.stops = this.chart.addSeries(LineSeries, level);
    this.targets = this.chart.addSeries(LineSeries, level);
    this.markers = createSeriesMarkers(this.candles, []);
    this.chart.subscribeCrosshairMove((at) => this.tell(typeof at.time === "number" ? at.time : null));
    this.paint(theme);
  }

  paint(theme: Theme): void {
    this.theme = theme;
    this.chart.applyOptions({
      layout: { background: { type: ColorType.Solid, color: theme.panel }, textColor: theme.text },
      grid: { vertLines: { color: theme.grid }, horzLines: { color: theme.grid } },
      rightPriceScale: { borderColor: theme.grid },
      timeScale: { borderColor: theme.grid },
    });
    this.candles.applyOptions({ upColor: theme.up, wickUpColor: theme.up, borderUpColor: theme.up,
      downColor: theme.down, wickDownColor: theme.down, borderDownColor: theme.down });
    this.drawn = -1;
    this.draw();
  }

  draw(): void {
    const { candles } = this.store;
    if (this.drawn !== this.store.redraws || candles.length < this.length) {
      this.candles.setData(candles.map((c) => ({ ...c, time: c.time as UTCTimestamp })));
      this.counted = "";
      this.drawn = this.store.redraws;
    } else {
      for (const c of candles.slice(Math.max(0, this.length - 1))) {
        this.candles.update({ ...c, time: c.time as UTCTimestamp });
      }
    }
    this.length = candles.length;
    const { decisions, fills, levels } = this.store;
    const counted = `${decisions.length} ${decisions.at(-1)?.ts_ns} ${fills.length} ${levels.length} ${this.showRejected}`;
    if (counted === this.counted) return;
    this.counted = counted;
    this.markers.setMarkers(this.marks());
    this.stops.setData(this.line(levels, "stop", this.theme.down));
    this.targets.setData(this.line(levels, "target", this.theme.up));
    this.tell(null);
  }

  private marks(): SeriesMarker<Time>[] {
    const { theme } = this;
    const found: SeriesMarker<Time>[] = [];
    let said = 0; // the side that was called last: a verdict that repeats it gets no word
    for (const d of this.store.decisions.slice(-MOST_MARKERS)) {
      const time = this.candleAt(seconds(d.ts_ns));
      if (time === null) continue;
      if (d.verdict === "EXECUTE") {
        const long = d.direction > 0;
        found.push({ time, position: long ? "belowBar" : "aboveBar", shape: long ? "arrowUp" : "arrowDown",
          color: long ? theme.up : theme.down,
          ...(d.direction === said ? { size: 0.6 } : { text: long ? "long" : "short" }) });
        said = d.direction;
      } else if (d.verdict === "CLOSE") {
        found.push({ time, position: "aboveBar", shape: "square", color: theme.accent, text: "close" });
        said = 0;
      } else if (this.showRejected && d.reason !== "NO_OPPORTUNITY") {
        found.push({ time, position: d.direction < 0 ? "aboveBar" : "belowBar", shape: "circle",
          color: theme.muted, size: 0.6 });
      }
    }
    for (const f of this.store.fills.slice(-MOST_MARKERS)) {
      const time = this.candleAt(seconds(f.ts_ns));
      if (time === null || f.pnl === null) continue;
      found.push({ time, position: "aboveBar", shape: "square", color: f.pnl >= 0 ? theme.up : theme.down,
        text: `${f.cause === "ORDER" ? "" : `${f.cause.toLowerCase()} `}${money(f.pnl, true)}` });
    }
    return found.sort((a, b) => (a.time as number) - (b.time as number));
  }

  /** The last candle that is not later than `time`. */
  private candleAt(time: number): UTCTimestamp | null {
    const { candles } = this.store;
    let low = 0, high = candles.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((candles[middle]?.time ?? 0) <= time) low = middle + 1;
      else high = middle;
    }
    return (candles[low - 1]?.time ?? null) as UTCTimestamp | null;
  }

  /** Steps that are drawn while a level rests and are clear between trades. */
  private line(levels: Level[], which: "stop" | "target", color: string): Point[] {
    const points: LineData<Time>[] = [];
    levels.forEach((level, i) => {
      const value = level[which], next = levels[i + 1]?.[which] ?? null, before = levels[i - 1]?.[which] ?? null;
      const time = level.time as UTCTimestamp;
      if (value !== null) points.push({ time, value, color });
      else if (next !== null) points.push({ time, value: next, color: CLEAR });
      else if (before !== null) points.push({ time, value: before, color: CLEAR });
    });
    return points;
  }

  /** The decision at the crosshair, or the last one, in words. */
  private tell(time: number | null): void {
    const { decisions, candles } = this.store;
    let decision = decisions.at(-1);
    if (time !== null) {
      const next = candles.find((c) => c.time > time)?.time ?? Infinity;
      decision = decisions.filter((d) => seconds(d.ts_ns) >= time && seconds(d.ts_ns) < next).at(-1);
    }
    this.legend.textContent = decision ? describe(decision) : time === null ? "" : "no decision at this bar";
  }

  follow(): void {
    this.chart.timeScale().scrollToRealTime();
  }

  fit(): void {
    const last = this.store.candles.length;
    this.chart.timeScale().setVisibleLogicalRange({ from: Math.max(0, last - 150), to: last + 4 });
  }
}
