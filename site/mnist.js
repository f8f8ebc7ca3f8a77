"use strict";
// A drawing as MNIST would show it: the same steps, in the same arithmetic, as `to_mnist` in
// notebook 15. A test holds both to the same 28 x 28 picture.

/** Nearest whole number; a half goes to the even one, as Python's round does. */
function roundHalfEven(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/**
 * One line of Pillow's resize with a triangle (bilinear) filter: which inputs make an output, with
 * which weights. Where it shrinks, the triangle spans all of them: that is the anti-aliasing.
 */
function triangle(inputs, outputs) {
  const scale = inputs / outputs;
  const support = Math.max(scale, 1);
  return Array.from({ length: outputs }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(inputs, Math.trunc(centre + support + 0.5));
    const weights = [];
    for (let j = first; j < end; j++) {
      weights.push(Math.max(0, 1 - Math.abs((j - centre + 0.5) * (1 / support))));
    }
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((w) => w / sum) };
  });
}

/** Resize an image (Float32Array, row by row): first along the rows, then along the columns. */
function resize(image, width, height, newWidth, newHeight) {
  let from = image;
  if (newWidth !== width) {
    const to = new Float32Array(height * newWidth);
    triangle(width, newWidth).forEach(({ first, weights }, x) => {
      for (let y = 0; y < height; y++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += from[y * width + first + k] * weights[k];
        to[y * newWidth + x] = sum;
      }
    });
    from = to;
  }
  if (newHeight !== height) {
    const to = new Float32Array(newHeight * newWidth);
    triangle(height, newHeight).forEach(({ first, weights }, y) => {
      for (let x = 0; x < newWidth; x++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += from[(first + k) * newWidth + x] * weights[k];
        to[y * newWidth + x] = sum;
      }
    });
    from = to;
  }
  return from;
}

/** The smallest box that holds all ink, or null: [left, top, right, bottom], the last two beyond it. */
function inkBox(ink, width, height) {
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!ink[y * width + x]) continue;
      if (x < left) left = x;
      if (x >= right) right = x + 1;
      if (y < top) top = y;
      bottom = y + 1;
    }
  }
  return right ? [left, top, right, bottom] : null;
}

/**
 * Ink (array, row by row; the paper is 0) as MNIST shows it: Uint8Array(784), or null if blank.
 * The longer side of its box becomes 20 pixels, its shape kept and its edges grey; its centre of
 * mass comes to lie on pixel (14, 14), as far as whole pixels allow and nothing is cut off.
 */
function toMnist(ink, width, height) {
  const box = inkBox(ink, width, height);
  if (!box) return null;
  const sides = [box[2] - box[0], box[3] - box[1]];
  const crop = new Float32Array(sides[0] * sides[1]);
  for (let y = 0; y < sides[1]; y++) {
    for (let x = 0; x < sides[0]; x++) {
      crop[y * sides[0] + x] = ink[(box[1] + y) * width + box[0] + x];
    }
  }
  const longer = Math.max(...sides);
  const [w, h] = sides.map((side) => Math.max(1, roundHalfEven((20 * side) / longer)));
  const small = resize(crop, sides[0], sides[1], w, h);
  const [columns, rows] = [new Float64Array(w), new Float64Array(h)];
  small.forEach((value, i) => {
    columns[i % w] += value;
    rows[Math.floor(i / w)] += value;
  });
  const corner = ([mass, side]) => {
    let [sum, moment] = [0, 0];
    mass.forEach((m, i) => ((sum += m), (moment += m * i)));
    return Math.min(28 - side, Math.max(0, roundHalfEven(14 - moment / sum)));
  };
  const [left, top] = [[columns, w], [rows, h]].map(corner);
  const darkest = small.reduce((a, b) => Math.max(a, b), 0);
  const picture = new Uint8Array(784);
  small.forEach((value, i) => {
    const place = (top + Math.floor(i / w)) * 28 + left + (i % w);
    picture[place] = roundHalfEven(255 * Math.fround(value / darkest));
  });
  return picture;
}
