// Runs when the page opens, when the date or the variable changes, and when the map is clicked.
// `layers` has one column per variable with one image of counts per date. Everything else is a
// model of the page that is brought up to date here.
const decode = (count, {low, step}) => count === missing ? NaN : low + step * count;
const layer = (name, date) => layers.data[name][date];

function show_map() {
  const shown = variables[menu.value], date = slider.value;
  const counts = layer(menu.value, date), values = image.data.image[0];
  for (let i = 0; i < counts.length; i++) values[i] = decode(counts[i], shown);
  image.change.emit();
  mapper.setv({palette: shown.palette, low: shown.range[0], high: shown.range[1]});
  map.title.text = `${shown.title}, ${dates[date].label}`;
  now.location = dates[date].time;
}

function show_series() {
  const column = picked.data.column[0], row = picked.data.row[0], at = row * columns + column;
  const x = left + (column + 0.5) * dx, y = bottom + (row + 0.5) * dy;
  const series_of = name => dates.map((_, date) => decode(layer(name, date)[at], variables[name]));
  const value = series_of("soil_moisture");
  const [low, high] = variables.interval_width ? interval(series_of) : spread(series_of);
  // Hollow: the value has a flag.
  const fill = dates.map((_, date) => flags_of(date, at).length ? "white" : "#1f77b4");
  pixel.data = {time: dates.map(date => date.time), value, low, high, fill};
  const there = stations.find(s => s.column === column && s.row === row);
  const readings = there ? there.value.map(v => v ?? NaN) : [];
  station.data = {time: there ? there.time : [], value: readings};
  picked.data = {column: [column], row: [row], x: [x], y: [y]};
  const parts = [`Series of the pixel ${coordinates(x, y)}`.trim(), there ? `station ${there.name}` : ""];
  series.title.text = `${parts.filter(part => part).join("; ")}\n${place(x, y)}`;
}

function interval(series_of) {
  const low = series_of("soil_moisture_lower"), width = series_of("interval_width");
  return [low, low.map((v, i) => v + width[i])];
}

function spread(series_of) {
  const value = series_of("soil_moisture"), reach = series_of("soil_moisture_std");
  return [value.map((v, i) => v - reach[i]), value.map((v, i) => v + reach[i])];
}

function flags_of(date, at) {
  if (!flags) return [];
  return Object.keys(flags.bits).filter(name => layer("flags", date)[at] & flags.bits[name]);
}

function show_flags() {
  if (!flags) return;
  const date = slider.value, at = picked.data.row[0] * columns + picked.data.column[0];
  const found = flags_of(date, at), open = flags.undetermined.filter(name => !found.includes(name));
  const unknown = open.length ? `; not determined: ${open.join(", ")}` : "";
  said.text = `Flags ${flags.where} on ${dates[date].label}: ${found.join(", ") || "none"}${unknown}. `
    + "Hollow: with a flag.";
}

function pick({x, y}) {
  const column = Math.floor((x - left) / dx), row = Math.floor((y - bottom) / dy);
  if (column < 0 || row < 0 || column >= columns || row >= rows) return;
  picked.data = {...picked.data, column: [column], row: [row]};
}

if (cb_obj.event_name === "tap") pick(cb_obj);
show_map();
show_series();
show_flags();
