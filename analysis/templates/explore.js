(function () {
  "use strict";
  var data = JSON.parse(document.getElementById("explore-data").textContent);
  var root = document.getElementById("explore");
  var ns = root.querySelector("svg").namespaceURI;
  var hidden = {}, raised = null;
  var W = 860, H = 330, L = 62, R = 16, T = 12, B = 44;

  function svg(name, attributes, parent, text) {
    var made = document.createElementNS(ns, name);
    for (var key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.appendChild(made);
    return made;
  }
  function html(name, className, parent, text) {
    var made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    if (parent) parent.appendChild(made);
    return made;
  }
  function number(value) {
    if (value === null || value === undefined || isNaN(value)) return "–";
    var size = Math.abs(value);
    var digits = size >= 100 || size === 0 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
    return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  }
  function plain(value) { return value.toLocaleString("en-US", { maximumSignificantDigits: 6 }); }

  // --- axes: from a value to a place and back, linear from 0 or logarithmic ---
  function axis(low, high, from, to, log) {
    if (log) { low = Math.log10(low); high = Math.log10(high); }
    if (high === low) high = low + 1;
    return {
      at: function (v) { return from + ((log ? Math.log10(v) : v) - low) / (high - low) * (to - from); },
      back: function (p) { var v = low + (p - from) / (to - from) * (high - low); return log ? Math.pow(10, v) : v; },
      ticks: function () {
        var found = [];
        if (log) {
          var steps = high - low < 2.6 ? [1, 2, 5] : high - low < 3.6 ? [1, 3] : [1];
          for (var e = Math.floor(low); e <= high; e++) steps.forEach(function (s) {
            var v = s * Math.pow(10, e);
            if (Math.log10(v) >= low - 1e-9 && Math.log10(v) <= high + 1e-9) found.push(v);
          });
        } else {
          var raw = (high - low) / 5, unit = Math.pow(10, Math.floor(Math.log10(raw)));
          var step = [1, 2, 2.5, 5, 10].filter(function (m) { return m * unit >= raw * 0.999; })[0] * unit;
          for (var v = Math.ceil(low / step) * step; v <= high * (1 + 1e-9); v += step) found.push(v);
        }
        return found;
      }
    };
  }

  function chart(host, label) {
    var box = html("div", "chart", host);
    var picture = svg("svg", { viewBox: "0 0 " + W + " " + H, role: "img", "aria-label": label }, box);
    var tip = html("div", "tip", box);
    tip.hidden = true;
    return { box: box, picture: picture, tip: tip };
  }
  function frame(on, x, y, xText, yText, yFormat) {
    on.picture.textContent = "";
    x.ticks().forEach(function (v) {
      svg("line", { x1: x.at(v), x2: x.at(v), y1: T, y2: H - B, "class": "grid" }, on.picture);
      svg("text", { x: x.at(v), y: H - B + 17, "class": "tick", "text-anchor": "middle" }, on.picture, plain(v));
    });
    y.ticks().forEach(function (v) {
      svg("line", { x1: L, x2: W - R, y1: y.at(v), y2: y.at(v), "class": "grid" }, on.picture);
      svg("text", { x: L - 8, y: y.at(v) + 4, "class": "tick", "text-anchor": "end" }, on.picture, yFormat(v));
    });
    svg("text", { x: (L + W - R) / 2, y: H - 7, "class": "label", "text-anchor": "middle" }, on.picture, xText);
    svg("text", { transform: "translate(14 " + (T + H - B) / 2 + ") rotate(-90)", "class": "label", "text-anchor": "middle" },
      on.picture, yText);
  }
  function curve(on, points, policy, dash) {
    var look = data.policies[policy], down = raised !== null && raised !== policy;
    svg("polyline", {
      points: points.map(function (p) { return p[0].toFixed(1) + "," + p[1].toFixed(1); }).join(" "), "class": "curve",
      stroke: look.color, "stroke-dasharray": dash === undefined ? look.dash : dash, "data-policy": look.label,
      opacity: down ? 0.15 : 1, "stroke-width": raised === policy ? 3.4 : 2.2
    }, on.picture);
  }
  function shown(series) { return series.filter(function (s) { return !hidden[s.policy]; }); }
  function slo(on, limit, vertical, scale) {
    if (limit === null) return;
    var at = scale.at(limit);
    if (!(at > (vertical ? L : T) && at < (vertical ? W - R : H - B))) return;
    svg("line", vertical ? { x1: at, x2: at, y1: T, y2: H - B, "class": "slo" }
      : { x1: L, x2: W - R, y1: at, y2: at, "class": "slo" }, on.picture);
    svg("text", vertical ? { x: at + 4, y: H - B - 6, "class": "tick" } : { x: W - R, y: at - 4, "class": "tick", "text-anchor": "end" },
      on.picture, "SLO");
  }
  function table(tip, heading, rows) {
    tip.textContent = "";
    html("strong", "", tip, heading);
    var made = html("table", "", tip);
    rows.forEach(function (row) {
      var line = html("tr", "", made);
      row.forEach(function (cell, i) {
        var td = html(i ? "td" : "th", "", line, i ? cell : "");
        if (!i) { html("i", "", td).style.background = cell.color; td.appendChild(document.createTextNode(cell.label)); }
      });
    });
  }
  function place(on, event) {
    var area = on.picture.getBoundingClientRect();
    return { x: (event.clientX - area.left) / area.width * W, y: (event.clientY - area.top) / area.height * H,
      left: event.clientX - area.left, width: area.width };
  }
  function show(on, where) {
    on.tip.hidden = false;
    var right = where.left > where.width * 0.55;
    on.tip.style.left = right ? "auto" : (where.left + 18) + "px";
    on.tip.style.right = right ? (where.width - where.left + 18) + "px" : "auto";
  }
  function buttons(host, items, chosen, act) {
    var row = html("div", "choices", host);
    items.forEach(function (item, i) {
      var one = html("button", "", row, item);
      one.type = "button";
      one.setAttribute("aria-pressed", i === chosen);
      one.addEventListener("click", function () {
        Array.prototype.forEach.call(row.children, function (other) { other.setAttribute("aria-pressed", other === one); });
        act(i);
      });
    });
  }

  // --- what is switched on ---
  var chips = html("div", "chips", root), redraw = [];
  function draw() { redraw.forEach(function (f) { f(); }); }
  data.policies.forEach(function (policy, i) {
    var chip = html("button", "chip", chips);
    chip.type = "button";
    chip.setAttribute("aria-pressed", "true");
    var mark = svg("svg", { width: 26, height: 10, "aria-hidden": "true" }, chip);
    svg("line", { x1: 1, y1: 5, x2: 25, y2: 5, stroke: policy.color, "stroke-width": 3.4, "stroke-dasharray": policy.dash }, mark);
    html("span", "", chip, policy.label);
    chip.addEventListener("click", function () {
      hidden[i] = !hidden[i];
      chip.setAttribute("aria-pressed", !hidden[i]);
      draw();
    });
    chip.addEventListener("mouseenter", function () { if (data.policies.length > 1) { raised = i; draw(); } });
    chip.addEventListener("mouseleave", function () { raised = null; draw(); });
  });

  // --- distributions ---
  (function () {
    var which = 0, rate = data.rates.length - 1, on;
    buttons(root, data.distributions.map(function (d) { return d.title; }), 0, function (i) { which = i; drawIt(); });
    if (data.rates.length > 1) buttons(root, data.rates, rate, function (i) { rate = i; drawIt(); });
    on = chart(root, "Cumulative distribution by policy");
    var x, y, mine;
    function drawIt() {
      var d = data.distributions[which];
      mine = shown(d.series.filter(function (s) { return s.rate === rate && s.x.length; }));
      var all = d.series.filter(function (s) { return s.rate === rate && s.x.length; });
      var high = 0, low = Infinity;
      all.forEach(function (s) { high = Math.max(high, s.x[s.x.length - 1]); low = Math.min(low, s.x[0]); });
      var log = low > 0 && high / low > 20;
      x = axis(log ? low : 0, high || 1, L, W - R, log);
      y = axis(0, 1, H - B, T, false);
      frame(on, x, y, d.axis, "share of " + d.whose, function (v) { return Math.round(100 * v) + " %"; });
      slo(on, d.slo, true, x);
      mine.forEach(function (s) {
        var points = [[x.at(s.x[0]), y.at(0)]], steps = s.x.length < 100;
        s.x.forEach(function (v, i) {
          if (steps) points.push([x.at(v), points[points.length - 1][1]]);
          points.push([x.at(v), y.at(s.y[i])]);
        });
        curve(on, points, s.policy);
      });
      if (!all.length) svg("text", { x: W / 2, y: H / 2, "class": "none", "text-anchor": "middle" }, on.picture, "no data");
      on.cross = svg("g", { "class": "cross" }, on.picture);
    }
    on.box.addEventListener("mousemove", function (event) {
      var d = data.distributions[which], where = place(on, event);
      var share = Math.min(1, Math.max(0, y.back(where.y))), value = x.back(where.x);
      on.cross.textContent = "";
      if (!mine.length || where.x < L - 10 || where.y > H - B + 12) { on.tip.hidden = true; return; }
      svg("line", { x1: L, x2: W - R, y1: y.at(share), y2: y.at(share) }, on.cross);
      svg("line", { x1: where.x, x2: where.x, y1: T, y2: H - B }, on.cross);
      var rows = mine.map(function (s) {
        var i = 0, j = 0;
        while (i < s.x.length - 1 && s.y[i] < share) i++;
        while (j < s.x.length && s.x[j] <= value) j++;
        svg("circle", { cx: x.at(s.x[i]), cy: y.at(share), r: 4, fill: data.policies[s.policy].color }, on.cross);
        return [data.policies[s.policy], number(s.x[i]) + " " + d.unit, (100 * (j ? s.y[j - 1] : 0)).toFixed(1) + " %"];
      });
      table(on.tip, "p" + (100 * share).toFixed(share > 0.98 ? 1 : 0) + ", and share up to " + number(value) + " " + d.unit, rows);
      show(on, where);
    });
    on.box.addEventListener("mouseleave", function () { on.tip.hidden = true; on.cross.textContent = ""; });
    redraw.push(drawIt);
  })();

  // --- against load ---
  if (data.loads.length) (function () {
    var which = 0, against = 0, x, y, mine, on;
    html("h3", "", root, "Against load");
    buttons(root, data.loads.map(function (d) { return d.title; }), 0, function (i) { which = i; drawIt(); });
    buttons(root, ["over the rate of arrivals", "over output tokens/s"], 0, function (i) { against = i; drawIt(); });
    on = chart(root, "Metrics against load by policy");
    function drawIt() {
      var d = data.loads[which], high = 0, low = Infinity, far = 0;
      function over(p) { return against ? p.tokens : p.rate; }
      d.series.forEach(function (s) { s.points.forEach(function (p) {
        high = Math.max(high, p.high); low = Math.min(low, p.value); far = Math.max(far, over(p));
      }); });
      var log = low > 0 && high / low > 40;
      x = axis(0, 1.04 * far || 1, L, W - R, false);
      y = axis(log ? low * 0.8 : 0, 1.06 * high || 1, H - B, T, log);
      mine = shown(d.series);
      frame(on, x, y, against ? "output tokens/s" : "rate of arrivals (requests/s)", d.axis, plain);
      slo(on, d.slo, false, y);
      mine.forEach(function (s) {
        curve(on, s.points.map(function (p) { return [x.at(over(p)), y.at(p.value)]; }), s.policy);
        s.points.forEach(function (p) {
          var color = data.policies[s.policy].color;
          if (p.high > p.low) svg("line", { x1: x.at(over(p)), x2: x.at(over(p)), y1: y.at(Math.max(p.low, log ? low * 0.8 : 0)),
            y2: y.at(p.high), stroke: color, "stroke-width": 1.2 }, on.picture);
          svg("circle", { cx: x.at(over(p)), cy: y.at(p.value), r: 3.6, fill: color }, on.picture);
        });
      });
      on.over = over;
      on.cross = svg("g", { "class": "cross" }, on.picture);
    }
    on.box.addEventListener("mousemove", function (event) {
      var d = data.loads[which], where = place(on, event), nearest = null;
      on.cross.textContent = "";
      mine.forEach(function (s) { s.points.forEach(function (p) {
        var far = Math.abs(x.at(on.over(p)) - where.x);
        if (nearest === null || far < nearest.far) nearest = { far: far, rate: p.rate, x: x.at(on.over(p)) };
      }); });
      if (nearest === null) { on.tip.hidden = true; return; }
      svg("line", { x1: nearest.x, x2: nearest.x, y1: T, y2: H - B }, on.cross);
      var rows = [];
      mine.forEach(function (s) { s.points.forEach(function (p) {
        if (p.rate !== nearest.rate) return;
        var interval = p.high > p.low ? number(p.low) + " to " + number(p.high) : "";
        rows.push([data.policies[s.policy], number(p.value) + " " + d.unit, interval]);
      }); });
      table(on.tip, plain(nearest.rate) + " requests/s", rows);
      show(on, where);
    });
    on.box.addEventListener("mouseleave", function () { on.tip.hidden = true; on.cross.textContent = ""; });
    redraw.push(drawIt);
  })();

  draw();
  root.setAttribute("data-ready", "yes");
})();
