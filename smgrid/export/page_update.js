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
  const value = series_of("soil_moisture"), spread = series_of("soil_moisture_std");
  pixel.data = {
    time: dates.map(date => date.time), value,
    low: value.map((v, i) => v - spread[i]), high: value.map((v, i) => v + spread[i]),
  };
  const there = stations.find(s => s.column === column && s.row === row);
  const readings = there ? there.value.map(v => v ?? NaN) : [];
  station.data = {time: there ? there.time : [], value: readings};
  picked.data = {column: [column], row: [row], x: [x], y: [y]};
  const parts = [`Series of the pixel ${coordinates(x, y)}`.trim(), there ? `station ${there.name}` : ""];
  series.title.text = `${parts.filter(part => part).join("; ")}\n${place(x, y)}`;
}

function pick({x, y}) {
  const column = Math.floor((x - left) / dx), row = Math.floor((y - bottom) / dy);
  if (column < 0 || row < 0 || column >= columns || row >= rows) return;
  picked.data = {...picked.data, column: [column], row: [row]};
}

if (cb_obj.event_name === "tap") pick(cb_obj);
show_map();
show_series();
