// Bundles the page into ../static: one script, one style sheet, the document and its icon.
import { build } from "esbuild";
import { copyFile, mkdir } from "node:fs/promises";

const out = new URL("../static/", import.meta.url).pathname;
await mkdir(out, { recursive: true });
await build({
  entryPoints: { page: "src/main.ts" },
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "inline", // the licences of the charts stay with their code
  outdir: out,
  logLevel: "warning",
});
for (const name of ["index.html", "icon.svg"]) {
  await copyFile(new URL(`src/${name}`, import.meta.url), `${out}${name}`);
}
