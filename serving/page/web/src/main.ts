// The page: signs in, follows the stream or plays a recording, and draws at most once per frame.
import "./page.css";
import { Access, Unauthorised } from "./access";
import { CandleChart } from "./candles";
import { byId, Panels } from "./panels";
import { drawdownSpec, equitySpec, latencySpec, Plots } from "./plots";
import { Player } from "./replay";
import type { Recording } from "./replay";
import { Store } from "./store";
import { Stream } from "./stream";
import type { Connection } from "./stream";
import { clock } from "./format";
import { readTheme } from "./theme";

const HEALTH_MS = 10_000;
const WORDS: Record<Connection | "replay", string> = {
  connecting: "connecting", live: "live", stale: "stale", reconnecting: "reconnecting", refused: "refused",
  closed: "not connected", replay: "replay",
};

class Page {
  private readonly access = new Access();
  private readonly store = new Store();
  private readonly panels = new Panels(this.store);
  private chart: CandleChart | null = null;
  private plots: Plots | null = null;
  private stream: Stream | null = null;
  private player: Player | null = null;
  private recordings: Recording[] = [];
  private health: Record<string, unknown> | null = null;
  private healthTimer = 0;
  private due = false;
  private framed = false;

  start(): void {
    this.wireTheme();
    this.wireEntrance();
    this.wireDesk();
    if (this.access.token) void this.enter();
    else this.show("enter");
  }

  private show(which: "enter" | "desk"): void {
    byId("enter").hidden = which !== "enter";
    byId("desk").hidden = which !== "desk";
    byId("leave").hidden = which !== "desk";
    byId("role").textContent = which === "desk" && this.access.role ? `role: ${this.access.role}` : "";
  }

  private wireEntrance(): void {
    const refusal = byId("refusal");
    const attempt = async (act: () => Promise<void>): Promise<void> => {
      refusal.textContent = "";
      try {
        await act();
        await this.enter();
      } catch (error) {
        refusal.textContent = error instanceof Error ? error.message : String(error);
      }
    };
    const user = byId<HTMLInputElement>("user"), password = byId<HTMLInputElement>("password");
    const token = byId<HTMLInputElement>("token");
    byId<HTMLFormElement>("login").addEventListener("submit", (event) => {
      event.preventDefault();
      void attempt(async () => {
        await this.access.login(user.value, password.value);
        password.value = "";
      });
    });
    byId<HTMLFormElement>("paste").addEventListener("submit", (event) => {
      event.preventDefault();
      void attempt(async () => {
        const text = token.value.trim();
        if (!/^[\x21-\x7e]+$/.test(text)) throw new Error("a token is one line of printable ASCII characters");
        this.access.keep(text, null);
        token.value = "";
      });
    });
    byId("leave").addEventListener("click", () => this.leave(""));
  }

  private wireDesk(): void {
    const source = byId<HTMLSelectElement>("source"), seek = byId<HTMLInputElement>("seek");
    source.addEventListener("change", () => this.choose(source.value));
    seek.addEventListener("input", () => this.player?.seek(Number(seek.value)));
    const speed = byId<HTMLSelectElement>("speed");
    speed.addEventListener("change", () => {
      if (this.player) this.player.speed = Number(speed.value);
    });
    byId("play").addEventListener("click", () => {
      const player = this.player;
      if (!player) return;
      if (!player.playing && player.place >= player.recording.bars) player.seek(0);
      player.play(!player.playing);
      this.changed();
    });
    byId("follow").addEventListener("click", () => this.chart?.follow());
    const rejected = byId<HTMLInputElement>("rejected");
    rejected.addEventListener("change", () => {
      if (this.chart) this.chart.showRejected = rejected.checked;
      this.changed();
    });
  }

  private wireTheme(): void {
    const choice = byId<HTMLSelectElement>("theme");
    const repaint = (): void => {
      const theme = readTheme();
      this.chart?.paint(theme);
      this.plots?.paint(theme);
    };
    choice.addEventListener("change", () => {
      if (choice.value) document.documentElement.dataset["theme"] = choice.value;
      else delete document.documentElement.dataset["theme"];
      repaint();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  }

  /** With a token: which recordings there are says whether it is taken. */
  private async enter(): Promise<void> {
    try {
      this.recordings = ((await this.access.get("/v1/replays"))["replays"] ?? []) as Recording[];
    } catch (error) {
      if (!(error instanceof Unauthorised)) throw error;
      this.access.forget();
      this.show("enter");
      throw new Error(`not let in: ${error.message}`);
    }
    this.show("desk");
    const live = document.createElement("option");
    live.value = "";
    live.textContent = "live stream";
    const source = byId<HTMLSelectElement>("source");
    source.replaceChildren(live, ...this.recordings.map((recording, i) => {
      const option = document.createElement("option");
      option.value = String(i);
      option.textContent = `replay: ${recording.name} (${recording.bars} bars)`;
      return option;
    }));
    const theme = readTheme();
    this.chart ??= new CandleChart(byId("candles"), byId("told"), this.store, theme);
    this.plots ??= new Plots(this.store, [equitySpec(byId("equity"), byId("equity-note")),
      drawdownSpec(byId("drawdown"), byId("drawdown-note")), latencySpec(byId("latency"), byId("latency-note"))],
    theme);
    void this.askHealth();
    this.healthTimer = window.setInterval(() => void this.askHealth(), HEALTH_MS);
    this.choose("");
  }

  private leave(why: string): void {
    this.stream?.stop();
    this.player?.stop();
    this.stream = this.player = null;
    window.clearInterval(this.healthTimer);
    this.access.forget();
    this.store.clear();
    this.changed();
    this.show("enter");
    byId("refusal").textContent = why;
    byId("user").focus();
  }

  private choose(value: string): void {
    this.stream?.stop();
    this.player?.stop();
    this.stream = this.player = null;
    this.store.clear();
    this.framed = false;
    const recording = value === "" ? undefined : this.recordings[Number(value)];
    byId("player").hidden = !recording;
    if (recording) this.replay(recording);
    else this.follow();
    this.changed();
  }

  private follow(): void {
    const stream = new Stream(this.access.token ?? "", {
      message: (message) => {
        if (message.type === "snapshot") this.store.snapshot(message.state, message.stream);
        else if (message.type === "delta") this.store.delta(message.topic, message.data);
        if (message.type === "delta" && message.topic === "kill") void this.askHealth();
        if (message.type !== "heartbeat") this.changed();
      },
      state: (state, detail) => {
        if (this.stream !== stream && this.stream !== null) return;
        this.connection(state, detail);
        if (state === "refused") this.leave("The service does not take the token any more: sign in again.");
      },
      stillAdmitted: async () => {
        try {
          await this.access.get("/v1/replays");
          return true;
        } catch (error) {
          if (error instanceof Unauthorised) return false;
          throw error;
        }
      },
    });
    this.stream = stream;
    stream.start();
  }

  private replay(recording: Recording): void {
    const player = new Player(recording, this.store, () => this.changed());
    player.speed = Number(byId<HTMLSelectElement>("speed").value);
    this.player = player;
    this.connection("replay", recording.title);
    const seek = byId<HTMLInputElement>("seek");
    let first = true;
    void player.load(this.access, () => {
      seek.max = String(player.loaded);
      if (first) player.seek(Math.min(150, player.loaded));
      first = false;
    }).catch((error: unknown) => {
      if (error instanceof Unauthorised) this.leave("The service does not take the token any more: sign in again.");
      else if (this.player === player) this.connection("replay", `not whole: ${String(error)}`);
    });
  }

  private connection(state: Connection | "replay", detail: string): void {
    const badge = byId("connection");
    if (badge.dataset["state"] !== state) { // not at every event: it is read aloud
      badge.dataset["state"] = state;
      badge.textContent = WORDS[state];
      document.body.classList.toggle("stale", state === "stale" || state === "reconnecting");
    }
    byId("detail").textContent = detail;
  }

  /** What stops trading is told above everything else, whether the stream or the service's health says so; text
   * changes only with the switch, as it is read aloud. */
  private killSwitch(replaying: boolean): void {
    const known = this.store.kill;
    const thrown = !replaying && (known?.thrown === true || this.health?.["kill_switch"] === true);
    const by = known?.thrown ? `: ${known.user}, ${known.why}` : "";
    const text = thrown ? `Kill switch thrown${by}` : "";
    const badge = byId("kill");
    if (badge.textContent !== text) badge.textContent = text;
  }

  private async askHealth(): Promise<void> {
    try {
      const answer = await fetch("/v1/health");
      this.health = answer.ok ? ((await answer.json()) as Record<string, unknown>) : null;
    } catch {
      this.health = null; // the connection's badge says that nobody answers
    }
    this.changed();
  }

  private changed(): void {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      this.draw();
    });
  }

  private draw(): void {
    const { player, store } = this;
    this.chart?.draw();
    this.plots?.draw();
    this.panels.draw(player !== null, this.health);
    this.killSwitch(player !== null);
    if (!this.framed && store.candles.length > 0) {
      this.framed = true;
      this.chart?.fit();
    }
    byId("instrument").textContent = player?.recording.instrument ?? store.decisions.at(-1)?.instrument
      ?? String(this.health?.["instrument"] ?? "");
    // what tests look at: counts of what is drawn
    byId("candles").dataset["count"] = String(store.candles.length);
    byId("candles").dataset["last"] = String(store.candles.at(-1)?.close ?? "");
    byId("decisions").dataset["count"] = String(store.decisions.length);
    if (player) {
      const button = byId("play");
      button.textContent = player.playing ? "Pause" : "Play";
      button.setAttribute("aria-pressed", String(player.playing));
      byId<HTMLInputElement>("seek").value = String(player.place);
      const last = store.equity.at(-1);
      byId("place").textContent = `${player.place} of ${player.recording.bars} bars${last ? `, ${clock(last.ts_ns)}` : ""}`;
      byId("seek").setAttribute("aria-valuetext", byId("place").textContent);
    }
  }
}

new Page().start();
