"use strict";
// The networks, in plain loops. A block is: convolution(s), max pooling if any, then batch norm,
// which at reading time is one multiplication and one addition a channel, then ReLU.

/** Numbers (little-endian float32) from base64. */
function decodeFloats(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

/** Bytes from base64. */
function decodeBytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

/** Convolution of maps {data, channels, side} with square kernels, in groups, zeros around. */
function convolve(maps, layer, weights) {
  const { outputs, kernel, padding, groups } = layer;
  const inputs = maps.channels / groups; // that one output sees
  const side = maps.side + 2 * padding - kernel + 1;
  const [source, width, area] = [maps.data, maps.side, maps.side * maps.side];
  const data = new Float32Array(outputs * side * side);
  const sums = new Float64Array(side * side);
  for (let out = 0; out < outputs; out++) {
    const first = Math.floor(out / (outputs / groups)) * inputs;
    let at = layer.offset + out * inputs * kernel * kernel;
    sums.fill(0);
    for (let i = first; i < first + inputs; i++) {
      // One weight at a time, times all that it meets: no test in the innermost loop
      for (let dy = -padding; dy < kernel - padding; dy++) {
        const [top, bottom] = [Math.max(0, -dy), Math.min(side, width - dy)];
        for (let dx = -padding; dx < kernel - padding; dx++) {
          const [left, right] = [Math.max(0, -dx), Math.min(side, width - dx)];
          const weight = weights[at++];
          for (let y = top; y < bottom; y++) {
            const from = i * area + (y + dy) * width + dx;
            const to = y * side;
            for (let x = left; x < right; x++) sums[to + x] += weight * source[from + x];
          }
        }
      }
    }
    data.set(sums, out * side * side);
  }
  return { data, channels: outputs, side };
}

/** The largest of each 2 x 2 pixels; an odd last row and column are left out. */
function maxPool(maps) {
  const side = Math.floor(maps.side / 2);
  const data = new Float32Array(maps.channels * side * side);
  for (let c = 0; c < maps.channels; c++) {
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) {
        const at = (c * maps.side + 2 * y) * maps.side + 2 * x;
        const below = at + maps.side;
        data[(c * side + y) * side + x] = Math.max(
          maps.data[at], maps.data[at + 1], maps.data[below], maps.data[below + 1]);
      }
    }
  }
  return { data, channels: maps.channels, side };
}

/** Batch norm as scale and shift, then ReLU, in place. */
function normalizeAndClip(maps, block, weights) {
  const area = maps.side * maps.side;
  for (let i = 0; i < maps.data.length; i++) {
    const channel = Math.floor(i / area);
    const value = maps.data[i] * weights[block.scale + channel] + weights[block.shift + channel];
    maps.data[i] = Math.max(0, value);
  }
  return maps;
}

/**
 * Read a picture (784 grey levels, white on black).
 * Returns the ten logits, the maps of each block, and the evidence: for each class a map of votes
 * whose mean, plus the class's bias, is its logit.
 */
function readDigit(network, picture) {
  const { weights, mean, std } = network;
  const pixels = Float32Array.from(picture, (level) => (level / 255 - mean) / std);
  let maps = { data: pixels, channels: 1, side: 28 };
  const layers = [];
  for (const block of network.blocks) {
    for (const layer of block.convolutions) maps = convolve(maps, layer, weights);
    if (block.pool) maps = maxPool(maps);
    maps = normalizeAndClip(maps, block, weights);
    layers.push(maps);
  }
  const area = maps.side * maps.side;
  const evidence = [];
  const logits = new Float64Array(10);
  for (let k = 0; k < 10; k++) {
    const votes = new Float64Array(area);
    for (let c = 0; c < maps.channels; c++) {
      const weight = weights[network.head.weight + k * maps.channels + c];
      for (let i = 0; i < area; i++) votes[i] += weight * maps.data[c * area + i];
    }
    evidence.push({ data: votes, side: maps.side });
    logits[k] = votes.reduce((a, b) => a + b, 0) / area + weights[network.head.bias + k];
  }
  return { logits, layers, evidence };
}

/** Probabilities from logits. */
function softmax(logits) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (z) => Math.exp(z - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((p) => p / sum);
}

/** The place of the largest number. */
function largest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** The networks of data.js, their weights as numbers. */
function loadNetworks(data) {
  return data.networks.map((network) => ({ ...network, weights: decodeFloats(network.weights) }));
}
