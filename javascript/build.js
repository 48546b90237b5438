// Writes src/conescope/report/plotly.min.js; `make bundle` calls it.
const { version } = require("plotly.js/package.json");
const inlineCss = require("esbuild-plugin-inline-css");
const { glsl } = require("esbuild-plugin-glsl");
const { environmentPlugin } = require("esbuild-plugin-environment");
require("esbuild").build({
  entryPoints: [`${__dirname}/index.js`],
  outfile: `${__dirname}/../src/conescope/report/plotly.min.js`,
  format: "iife", globalName: "Plotly", bundle: true, minify: true, target: "es2016", legalComments: "eof",
  plugins: [inlineCss(), glsl({ minify: true }), environmentPlugin({ NODE_DEBUG: false })],
  alias: { regl: "@plotly/regl", stream: "stream-browserify" },
  define: { global: "window", "define.amd": "false" },
  banner: { js: `/* Part of plotly.js v${version}, Copyright Plotly, Inc., MIT license, and of what it depends on. */` },
});
