(function () {
  "use strict";
  var report = JSON.parse(document.getElementById("report").textContent);
  var style = getComputedStyle(document.documentElement);
  function colour(name) { return style.getPropertyValue(name).trim(); }
  var sync = uPlot.sync("time");

  function axis(extra) {
    return Object.assign({ stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 },
      ticks: { stroke: colour("--line"), width: 1 } }, extra || {});
  }

  // times are UTC, as everywhere in the report
  function iso(t) { return new Date(t * 1000).toISOString(); }
  function clock(u, splits, i, space, step) {
    var day = "";
    return splits.map(function (t) {
      if (t === null) { return null; }
      var text = iso(t), before = day;
      day = text.slice(0, 10);
      if (step >= 86400) { return day; }
      return (step >= 60 ? text.slice(11, 16) : step >= 1 ? text.slice(11, 19) : text.slice(14, 23)) + (day === before ? "" : "\n" + day);
    });
  }

  // all charts show the same stretch of time: what one is zoomed to, the others follow
  var plots = [], following = false;
  function follow(u, key) {
    var x = u.scales.x;
    if (key !== "x" || following) { return; }
    if (!u.seen) { u.seen = [x.min, x.max]; return; } // drawn for the first time
    if (x.min === u.seen[0] && x.max === u.seen[1]) { return; }
    following = true;
    plots.forEach(function (other) {
      if (other !== u) { other.setScale("x", { min: x.min, max: x.max }); }
      other.seen = [x.min, x.max];
    });
    following = false;
  }

  // + and - zoom about the middle, the arrows move by a quarter, 0 and Escape show everything
  function keys(plot, time) {
    var first = time[0], last = time[time.length - 1];
    return function (event) {
      var low = plot.scales.x.min, high = plot.scales.x.max, span = high - low, middle = (low + high) / 2, shift = 0;
      if (event.ctrlKey || event.metaKey || event.altKey) { return; }
      switch (event.key) {
        case "+": case "=": span = Math.max(span / 2, (last - first) / 10000, 1e-3); break;
        case "-": span = Math.min(span * 2, last - first); break;
        case "ArrowLeft": shift = -span / 4; break;
        case "ArrowRight": shift = span / 4; break;
        case "0": case "Escape": span = last - first; middle = (first + last) / 2; break;
        default: return;
      }
      low = Math.min(Math.max(middle + shift - span / 2, first), last - span);
      plot.setScale("x", { min: low, max: low + span });
      event.preventDefault();
    };
  }

  function chart(parent, title, time, lines, percent) {
    var known = lines.filter(function (l) { return l.data && l.data.some(function (v) { return v !== null; }); });
    if (!known.length) { return; }
    var box = document.createElement("div");
    box.className = "chart";
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", title + ", " + known.map(function (l) { return l.label; }).join(" and ") +
      " over time. Keys: plus and minus zoom, arrows move, 0 shows everything.");
    parent.appendChild(box);
    function show(v) { return v === null || v === undefined ? "–" : percent ? (v * 100).toFixed(1) + " %" : +v.toFixed(2) + ""; }
    var plot = new uPlot({
      width: parent.clientWidth || 1000, height: 190, title: title, cursor: { sync: { key: sync.key } },
      scales: percent ? { y: { range: [0, 1] } } : { y: { range: function (u, low, high) { return [0, high > 0 ? high * 1.05 : 1]; } } },
      tzDate: function (t) { return uPlot.tzDate(new Date(t * 1000), "Etc/UTC"); },
      axes: [axis({ values: clock, space: 70 }), axis({ size: 64, values: function (u, all) { return all.map(function (v) { return percent ? Math.round(v * 100) + " %" : v; }); } })],
      series: [{ label: "UTC", value: function (u, t) { return t === null || t === undefined ? "–" : iso(t).slice(0, 23).replace("T", " "); } }].concat(known.map(function (l) {
        return { label: l.label, stroke: colour(l.colour), width: l.thin ? 1 : 1.6, dash: l.thin ? [4, 3] : [],
          points: { show: !!l.sparse, size: 3 }, spanGaps: !!l.sparse, value: function (u, v) { return show(v); } };
      }))
    }, [time].concat(known.map(function (l) { return l.data; })), box);
    plot.hooks.setScale = (plot.hooks.setScale || []).concat(follow);
    plots.push(plot);
    box.addEventListener("keydown", keys(plot, time));
    window.addEventListener("resize", function () { plot.setSize({ width: parent.clientWidth, height: 190 }); });
  }

  report.engines.forEach(function (e, i) {
    var s = e.series, parent = document.getElementById("engine-charts-" + i);
    chart(parent, "KV pool held by requests", s.t_s, [
      { label: "usage", data: s.usage_ratio, colour: "--a" },
      { label: "largest", data: s.usage_ratio_max, colour: "--b", thin: true }], true);
    chart(parent, "Requests", s.t_s, [
      { label: "running", data: s.running_requests, colour: "--a" },
      { label: "waiting", data: s.waiting_requests, colour: "--b" }]);
    chart(parent, "Prefix hit rate", s.t_s, [{ label: "tokens found", data: s.prefix_hit_rate, colour: "--c", sparse: true }], true);
    chart(parent, "Tokens a second", s.t_s, [
      { label: "generated", data: s.generation_tokens_per_s, colour: "--a" },
      { label: "prompt", data: s.prompt_tokens_per_s, colour: "--c" }]);
    if (s.preemptions_per_s.some(function (v) { return v > 0; })) {
      chart(parent, "Preemptions a second", s.t_s, [{ label: "preemptions", data: s.preemptions_per_s, colour: "--b" }]);
    }
  });

  report.probes.forEach(function (p, i) {
    var s = p.series, parent = document.getElementById("probe-charts-" + i);
    chart(parent, "Blocks in use", s.t_s, [{ label: "blocks", data: s.used_blocks, colour: "--a" }]);
    chart(parent, "Requests", s.t_s, [
      { label: "running", data: s.running, colour: "--a" }, { label: "waiting", data: s.waiting, colour: "--b" }]);
    chart(parent, "Tokens of a step", s.t_s, [{ label: "tokens", data: s.tokens, colour: "--c" }]);
    var map = p.block_map, canvas = document.getElementById("block-map-" + i);
    if (!map || !canvas) { return; }
    canvas.width = map.rows[0].length;
    canvas.height = map.rows.length;
    var context = canvas.getContext("2d");
    context.fillStyle = colour("--a");
    map.rows.forEach(function (row, y) {
      for (var x = 0; x < row.length; x++) {
        context.globalAlpha = (row.charCodeAt(x) - 48) / 9;
        context.fillRect(x, y, 1, 1);
      }
    });
  });
})();
