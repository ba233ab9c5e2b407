// What stands beside the pointer; `format` says which line of it.
const {x, y} = special_vars;
switch (format) {
  case "value": return Number.isFinite(value) ? `${value.toFixed(3)} ${variables[menu.value].units}` : "no value";
  case "coordinates": return coordinates(x, y) || "-";
  default: return place(x, y);
}
