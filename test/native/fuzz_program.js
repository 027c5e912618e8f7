'use strict';
// Run as a process of its own: `node fuzz_program.js <addon> <seed> <rounds>`. Half of the rounds call
// a kernel with operands that fit, of which most then get one flaw; the others put a flaw anywhere
// into the description of a program. All may fail, but only with the error class handed over, and
// nothing may crash. Every operand has a buffer of exactly its size, so that a build with the address
// sanitizer sees any access beyond.

const [addonPath, seed, rounds] = process.argv.slice(2);
class SiglipError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}
const addon = require(addonPath);
addon.initialize(SiglipError);
const kernels = addon.describe().kernels;

// mulberry32
let state = Number(seed);
function random() {
  state = (state + 0x6d2b79f5) | 0;
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
}
const below = (n) => Math.floor(random() * n);
const pick = (list) => list[below(list.length)];

const f = (...dims) => ({ dtype: 0, dims });
const i = (...dims) => ({ dtype: 1, dims });
const u = (...dims) => ({ dtype: 2, dims });
const int = (...choices) => ({ choices });
const list = (...items) => ({ items });

// Embeddings, scale and bias of a learner and a reference.
const MODEL = (width) => [f('M', width), f('M', width), f(1), f(1)];
const TWO_MODELS = [...MODEL('K'), ...MODEL('N')];

// Operands that fit, in C++ order without scratch. A letter is one extent throughout a call; `Q`
// stands for two patches, `G` for N · N, `S` for B + 1, `FLOAT32`, `BFLOAT16` and `INT8` for the
// bytes of a packed weight.
const CALLS = {
  linear_forward: [
    f('M', 'K'),
    f('N', 'K'),
    f('N'),
    f('M', 'N'),
    int(0, 1),
    f('M', 'N'),
    f('M', 'N'),
  ],
  linear_backward_input: [f('M', 'N'), f('N', 'K'), f('M', 'K'), f('M', 'K'), f('M', 'K')],
  linear_backward_weight: [f('M', 'N'), f('M', 'K'), f('N', 'K'), f('N')],
  linear_float32_pack: [f('N', 'K'), u('FLOAT32')],
  linear_float32_forward: [
    f('M', 'K'),
    u('FLOAT32'),
    f('N'),
    f('M', 'N'),
    int(0, 1),
    f('M', 'N'),
    f('M', 'N'),
  ],
  linear_int8_pack: [f('N', 'K'), u('INT8')],
  linear_int8_forward: [
    f('M', 'K'),
    u('INT8'),
    f('N'),
    f('M', 'N'),
    int(0, 1),
    f('M', 'N'),
    f('M', 'N'),
  ],
  linear_bfloat16_pack: [f('N', 'K'), u('BFLOAT16')],
  linear_bfloat16_forward: [
    f('M', 'K'),
    u('BFLOAT16'),
    f('N'),
    f('M', 'N'),
    int(0, 1),
    f('M', 'N'),
    f('M', 'N'),
  ],
  matmul_forward: [f('M', 'K'), f('K', 'N'), int(0), int(0), f('M', 'N')],
  group_matmul_forward: [f('M', 'H', 'K'), f('H', 'K', 'N'), int(0), f('M', 'H', 'N')],
  group_matmul_outer: [f('M', 'H', 'K'), f('M', 'H', 'N'), f('H', 'K', 'N')],
  attention_forward: [
    f('B', 'M', 'H', 'K'),
    f('B', 'N', 'H', 'K'),
    f('B', 'N', 'H', 'K'),
    u('B', 'N'),
    i('S'),
    i('S'),
    u('B'),
    int(0.3),
    int(1),
    f('B', 'M', 'H', 'K'),
    f('B', 'H', 'M'),
  ],
  attention_backward: [
    f('B', 'M', 'H', 'K'),
    f('B', 'M', 'H', 'K'),
    f('B', 'N', 'H', 'K'),
    f('B', 'N', 'H', 'K'),
    u('B', 'N'),
    i('S'),
    i('S'),
    u('B'),
    f('B', 'M', 'H', 'K'),
    f('B', 'H', 'M'),
    int(0.3),
    f('B', 'M', 'H', 'K'),
    f('B', 'N', 'H', 'K'),
    f('B', 'N', 'H', 'K'),
  ],
  attention_pool_forward: [
    f('B', 'M', 'K'),
    f('H', 'K'),
    u('B', 'M'),
    i('S'),
    f('B', 'H', 'K'),
    f('B', 'H'),
  ],
  attention_pool_backward: [
    f('B', 'H', 'K'),
    f('B', 'M', 'K'),
    f('H', 'K'),
    u('B', 'M'),
    i('S'),
    f('B', 'H', 'K'),
    f('B', 'H'),
    f('B', 'M', 'K'),
    f('H', 'K'),
  ],
  layer_norm_forward: [
    f('B', 'M', 'K'),
    f('K'),
    f('K'),
    int(1e-6),
    f('B', 'M', 'K'),
    f('B', 'M'),
    f('B', 'M'),
  ],
  layer_norm_backward: [
    f('M', 'K'),
    f('M', 'K'),
    f('K'),
    f('M'),
    f('M'),
    f('M', 'K'),
    f('M', 'K'),
    f('K'),
    f('K'),
  ],
  gelu_forward: [f('M', 'K'), int(1, 2), f('M', 'K')],
  gelu_backward: [f('M', 'K'), f('M', 'K'), int(1, 2), f('M', 'K')],
  embedding_forward: [f('N', 'K'), i('B', 'M'), f('B', 'M', 'K')],
  embedding_backward: [f('M', 'K'), i('M'), f('N', 'K')],
  patchify_forward: [f('B', 'C', 'Q', 'Q'), int('P'), f('B', 4, 'CPP')],
  patchify_backward: [f('B', 4, 'CPP'), int('P'), f('B', 'C', 'Q', 'Q')],
  normalize_pixels_forward: [u('B', 'M', 'N', 3), f(3, 256), f('B', 3, 'M', 'N')],
  position_resize_forward: [f('G', 'K'), i('B', 2), i('S'), f('B', 'M', 'K')],
  position_resize_backward: [f('B', 'M', 'K'), i('B', 2), i('S'), f('G', 'K')],
  token_select_forward: [f('B', 'M', 'K'), int(0), f('B', 'K')],
  token_select_backward: [f('B', 'K'), int(0), f('B', 'M', 'K')],
  token_mean_forward: [f('B', 'M', 'K'), f('B', 'K')],
  token_mean_backward: [f('B', 'K'), f('B', 'M', 'K')],
  l2_normalize_forward: [f('M', 'K'), int(1e-6), f('M', 'K'), f('M')],
  l2_normalize_backward: [f('M', 'K'), f('M', 'K'), f('M'), int(1e-6), f('M', 'K')],
  token_write: [f('B', 'K'), i('B'), f('B', 'M', 'K')],
  row_shares_forward: [f('M', 'K'), f('M', 'K')],
  vocabulary_loss_forward: [f('M', 'K'), f('N', 'K'), f('N'), i('M'), f('M'), f(1), f('M'), f('M')],
  vocabulary_loss_backward: [
    f(1),
    f('M', 'K'),
    f('N', 'K'),
    f('N'),
    i('M'),
    f('M'),
    f('M'),
    f('M', 'K'),
    f('N', 'K'),
    f('N'),
  ],
  mask_tokens_forward: [f('B', 'M', 'K'), u('B', 'M'), f('K'), f('B', 'M', 'K')],
  mask_tokens_backward: [f('B', 'M', 'K'), u('B', 'M'), f('B', 'M', 'K'), f('K')],
  prototype_loss_forward: [
    f('M', 'K'),
    f('N', 'K'),
    f('B', 'K'),
    f('N', 'K'),
    f('N'),
    f('M'),
    i('M'),
    f(1),
    int(0.1),
    f(1),
    f('M'),
    f('B'),
  ],
  prototype_loss_backward: [
    f(1),
    f('M', 'K'),
    f('N', 'K'),
    f('B', 'K'),
    f('N', 'K'),
    f('N'),
    f('M'),
    i('M'),
    f(1),
    f('M'),
    f('B'),
    int(0.1),
    f('M', 'K'),
    f('N', 'K'),
  ],
  sinkhorn_centre: [f('M', 'K'), f('N', 'K'), f(1), int(3), f('N')],
  sigmoid_loss_forward: [
    f('M', 'K'),
    f('N', 'K'),
    f(1),
    f(1),
    int(0, 3, -5),
    int(8),
    f(1),
    f('M', 'K'),
    f('N', 'K'),
    f(1),
    f(1),
  ],
  learnability_log_sums: [...TWO_MODELS, int(0, 1), int(0, -1), f(4, 'M')],
  learnability_forward: [...TWO_MODELS, f(4, 'M'), int(0, 1), int(0, -1), f('M'), f('M'), f('M')],
  learnability_condition: [...TWO_MODELS, f(4, 'M'), f('M'), i('P'), int(0, 1), int(0, -1), f('M')],
  learnability_select: [f('M'), u('M'), i(4), f('M'), int(0, 5), int(1), i(1), u('M')],
  add_forward: [f('M', 'K'), f('M', 'K'), f('M', 'K')],
  add_row_forward: [f('B', 'M', 'K'), f('M', 'K'), f('B', 'M', 'K')],
  repeat_row_forward: [f('M', 'K'), f('B', 'M', 'K')],
  scale_forward: [f('M', 'K'), f(1), f('M', 'K')],
  scale_by_forward: [f('M', 'K'), int(2), f('M', 'K')],
  accumulate: [f('M', 'K'), f('M', 'K')],
  moving_average: [f('M', 'K'), int(0.9), f('M', 'K')],
  fill: [int(2), f('M', 'K')],
  copy_forward: [f('M', 'K'), f('M', 'K')],
  cast_forward: [f('M', 'K'), f('M', 'K')],
  join_rows_forward: [list(f('M', 'K'), f('M', 'K')), f(2, 'M', 'K')],
  sum_rows_forward: [f('B', 'M', 'K'), f('M', 'K')],
  dot_forward: [f('M', 'K'), f('M', 'K'), f(1)],
  global_norm_forward: [list(f('M', 'K'), f('N')), f(1)],
  root_sum_forward: [list(f(1), f(1), f(1)), f(1)],
  adam_update: [
    f('M', 'K'),
    f('M', 'K'),
    f('M', 'K'),
    f('M', 'K'),
    f(1),
    f(3),
    int(0.1),
    int(0.9),
    int(0.99),
    int(1e-8),
    int(0.01),
    int(1),
    f(1),
    f(1),
  ],
};

/** A call of `kernel` with operands that fit: views with their dtype and shape, and numbers. */
function fittingCall(kernel) {
  const letters = {};
  for (const letter of ['B', 'C', 'H']) letters[letter] = 1 + below(3);
  for (const letter of ['M', 'N', 'K']) letters[letter] = 1 + below(pick([4, 20, 70]));
  letters.P = 1 + below(4);
  letters.Q = 2 * letters.P;
  letters.G = letters.N * letters.N;
  letters.S = letters.B + 1;
  letters.CPP = letters.C * letters.P * letters.P;
  const [rows, steps] = [64 * Math.ceil(letters.N / 64), 4 * Math.ceil(letters.K / 4)];
  letters.FLOAT32 = 4 * rows * letters.K;
  letters.INT8 = rows * (steps + 8);
  letters.BFLOAT16 = 2 * rows * steps;
  const extent = (dim) => (typeof dim === 'number' ? dim : letters[dim]);
  const make = (spec) => {
    if (spec.items) return spec.items.map(make);
    if (spec.choices) {
      const value = pick(spec.choices);
      return typeof value === 'string' ? letters[value] : value;
    }
    return { dtype: spec.dtype, shape: spec.dims.map(extent) };
  };
  const given = CALLS[kernel.name].map(make);
  return kernel.arguments.map(({ kind }) => {
    if (kind === 'scratch') return null;
    const value = given.shift();
    return kind.startsWith('maybe') && random() < 0.3 ? null : value;
  });
}

const INTEGERS = [-1, 0, 1, 2, 3, 7, 64, -64, 2 ** 31, -(2 ** 31), 2 ** 53 - 1, -(2 ** 53) + 1];
const NUMBERS = [...INTEGERS, 0.5, NaN, Infinity, -Infinity, 1e-300, -0];
const JUNK = [undefined, null, true, '', 'x', {}, [], [[]], 5n, Symbol('s'), () => 1, ...NUMBERS];

/** Changes one thing about one operand, which stays an operand. */
function spoilOperand(args) {
  const at = below(args.length);
  const value = args[at];
  if (value === null) return;
  if (typeof value === 'number') {
    args[at] = pick(INTEGERS);
    return;
  }
  const view = Array.isArray(value) ? pick(value) : value;
  const axis = below(view.shape.length);
  [
    () => (view.shape[axis] = 1 + below(24)),
    () => (view.shape[axis] += 1),
    () => (view.shape[axis] = Math.max(1, view.shape[axis] - 1)),
    () => view.shape.push(1 + below(3)),
    () => view.shape.length > 1 && view.shape.splice(axis, 1),
    () => view.shape.reverse(),
    () => (view.dtype = below(3)),
  ][below(7)]();
}

/** Replaces something anywhere inside `value` by something senseless. */
function spoilAnything(value) {
  let [holder, key] = [{ value }, 'value'];
  while (typeof holder[key] === 'object' && holder[key] !== null && random() < 0.85) {
    const keys = Object.keys(holder[key]);
    if (keys.length === 0) break;
    [holder, key] = [holder[key], pick(keys)];
  }
  holder[key] = pick(JUNK);
}

const elements = (shape) => shape.reduce((a, b) => a * b, 1);

/** Each view gets a buffer of its own size; scratch gets the arena. */
function programOf(index, args) {
  const bufferBytes = [];
  const contents = [];
  const place = (view) => {
    const bytes = elements(view.shape) * (view.dtype === 2 ? 1 : 4);
    bufferBytes.push(bytes);
    contents.push(view.dtype);
    return { storage: bufferBytes.length - 1, offset: 0, dtype: view.dtype, shape: view.shape };
  };
  const placed = args.map((value) => {
    if (value === null || typeof value === 'number') return value;
    return Array.isArray(value) ? value.map(place) : place(value);
  });
  const kinds = kernels[index].arguments.map(({ kind }) => kind);
  let arenaBytes = 0;
  if (kinds.at(-1) === 'scratch') {
    arenaBytes = addon.scratchBytes(index, placed);
    if (arenaBytes > 1 << 26)
      throw new SiglipError('ERR_ARGUMENT', 'more scratch than the test has');
    if (arenaBytes > 0) {
      placed[placed.length - 1] = { storage: -1, offset: 0, dtype: 2, shape: [arenaBytes] };
    }
  }
  const steps = [{ kernel: index, label: 'step', args: placed }];
  return { description: { name: 'fuzz', arenaBytes, bufferBytes, steps }, contents };
}

function bufferOf(bytes, dtype) {
  const buffer = new addon.Buffer(bytes);
  const data =
    dtype === 0
      ? Float32Array.from({ length: bytes / 4 }, () => 2 * random() - 1)
      : dtype === 1
        ? Int32Array.from({ length: bytes / 4 }, () => below(12) - 1)
        : Uint8Array.from({ length: bytes }, () => below(256));
  buffer.write(0, new Uint8Array(data.buffer));
  return buffer;
}

const tally = { done: 0, refused: 0, codes: {} };

async function round() {
  const buffers = [];
  let program;
  try {
    const index = below(kernels.length);
    const args = fittingCall(kernels[index]);
    const spoilWhole = random() < 0.5;
    if (!spoilWhole && random() < 0.8) spoilOperand(args);
    const { description, contents } = programOf(index, args);
    if (spoilWhole) spoilAnything(description);
    program = new addon.Program(description);
    for (const [at, bytes] of description.bufferBytes.entries()) {
      if (bytes > 1 << 26) throw new SiglipError('ERR_ARGUMENT', 'more memory than the test has');
      buffers.push(bufferOf(bytes, contents[at]));
    }
    await program.run(buffers, random() < 0.5);
    tally.done += 1;
  } catch (error) {
    if (!(error instanceof SiglipError)) throw error;
    tally.refused += 1;
    tally.codes[error.code] = (tally.codes[error.code] ?? 0) + 1;
  } finally {
    for (const buffer of buffers) buffer.dispose();
    program?.dispose();
  }
}

(async () => {
  for (let n = 0; n < Number(rounds); n++) {
    const before = state;
    try {
      await round();
    } catch (error) {
      console.log(`seed ${before}: ${error.stack}`);
      process.exit(1);
    }
  }
  const { buffers, arenaBytes } = addon.memory();
  console.log(JSON.stringify({ ...tally, buffers, arenaBytes }));
})();
