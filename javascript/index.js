// The part of plotly.js that the pages of conescope draw with: lines, bars, heat maps, and paths in space.
const Plotly = require("plotly.js/lib/core");
Plotly.register([require("plotly.js/lib/bar"), require("plotly.js/lib/heatmap")]);
// What space needs takes longer to start than all the rest, so a page calls this before it draws a chart in space.
let knowsSpace = false;
Plotly.registerSpace = () => {
  if (!knowsSpace) Plotly.register([require("plotly.js/lib/scatter3d")]);
  knowsSpace = true;
};
module.exports = Plotly;
