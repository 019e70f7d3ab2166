(function () {
  "use strict";
  var all = JSON.parse(document.getElementById("report").textContent);
  var style = getComputedStyle(document.documentElement);
  function colour(name) { return style.getPropertyValue(name).trim(); }
  function axis(extra) {
    return Object.assign({ stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 },
      ticks: { stroke: colour("--line"), width: 1 } }, extra || {});
  }
  all.forEach(function (s, i) {
    var parent = document.getElementById("charts-" + i);
    if (!parent || !s.series || !s.series.length) { return; }
    var time = s.series.map(function (p) { return p.time_s; });
    var sync = uPlot.sync("time-" + i);
    function chart(title, lines, percent) {
      var box = document.createElement("div");
      box.className = "chart";
      parent.appendChild(box);
      var plot = new uPlot({
        width: parent.clientWidth || 1000, height: 190, title: title, cursor: { sync: { key: sync.key } },
        scales: { x: { time: false }, y: percent ? { range: [0, 1] }
          : { range: function (u, low, high) { return [0, high > 0 ? high * 1.05 : 1]; } } },
        axes: [axis({ label: "seconds", labelSize: 18 }), axis({ size: 64,
          values: function (u, v) { return v.map(function (x) { return percent ? Math.round(x * 100) + " %" : x; }); } })],
        series: [{ label: "s", value: function (u, v) { return v === null ? "–" : v.toFixed(1); } }].concat(lines.map(function (l) {
          return { label: l.label, stroke: colour(l.colour), width: 1.6, points: { show: false },
            value: function (u, v) { return v === null || v === undefined ? "–" : percent ? (v * 100).toFixed(1) + " %" : v + ""; } };
        }))
      }, [time].concat(lines.map(function (l) { return s.series.map(function (p) { return p[l.key]; }); })), box);
      window.addEventListener("resize", function () { plot.setSize({ width: parent.clientWidth, height: 190 }); });
    }
    chart("Requests", [{ label: "running", key: "running", colour: "--a" }, { label: "waiting", key: "waiting", colour: "--b" }]);
    chart("KV cache", [{ label: "in use", key: "kv_usage", colour: "--a" }, { label: "prefix hits so far", key: "hit_rate", colour: "--c" }], true);
  });
})();
