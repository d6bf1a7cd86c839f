// Colours of the charts: canvases do not see style sheets, so they are read from the document's variables.
export interface Theme {
  panel: string;
  text: string;
  muted: string;
  grid: string;
  up: string;
  down: string;
  accent: string;
}

export function readTheme(): Theme {
  const style = getComputedStyle(document.documentElement);
  const of = (name: string): string => style.getPropertyValue(`--${name}`).trim();
  return { panel: of("panel"), text: of("text"), muted: of("muted"), grid: of("grid"), up: of("up"),
    down: of("down"), accent: of("accent") };
}
