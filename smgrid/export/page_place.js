// Where things are on the page; stands before the two other scripts. `spec` (JSON) says what the
// counts in `layers` mean and how pixels lie on the axes, rows counted from the south.
const {dates, variables, missing, frame, nodes, stations, flags} = JSON.parse(spec);
const {left, bottom, dx, dy, columns, rows, divisor} = frame;

// Longitude or latitude at a place, between the nodes of a lattice over the map.
function between(values, x, y) {
  const [nx, ny] = [values[0].length - 1, values.length - 1];
  const u = nx * (x - left) / (columns * dx), v = ny * (y - bottom) / (rows * dy);
  const i = Math.min(Math.max(Math.floor(u), 0), nx - 1);
  const j = Math.min(Math.max(Math.floor(v), 0), ny - 1);
  const along = row => row[i] + (u - i) * (row[i + 1] - row[i]);
  return along(values[j]) + (v - j) * (along(values[j + 1]) - along(values[j]));
}

function place(x, y) {
  const east = between(nodes.longitude, x, y);
  const longitude = ((east + 180) % 360 + 360) % 360 - 180;
  return `latitude ${between(nodes.latitude, x, y).toFixed(5)}°, longitude ${longitude.toFixed(5)}°`;
}

// Coordinates in the CRS of the map, unless these are longitude and latitude anyway.
function coordinates(x, y) {
  return divisor === 1 ? "" : `${(x * divisor).toFixed(0)}, ${(y * divisor).toFixed(0)}`;
}
