// The one table of cases of the operations: what they are applied to, what they must give, and what
// they cost. The op tests (test/ops) and the benchmark (bench) read it; neither Jest nor a clock
// appears here. `opCases` are tiny and awkward (odd sizes, single rows, extreme values), `splitCases`
// large enough that kernels divide them among threads, `modelCases` what a B/16 tower does.
import type { Device } from '../lib/array';
import { DeviceArray } from '../lib/array';
import type { CompileOptions, DType, Program, Spec, Tensor } from '../lib/graph';
import { compile, gradient } from '../lib/graph';
import { loadAddon } from '../lib/native/load';
import type { HostArray } from '../lib/native/spec';
import * as ops from '../lib/ops';
import * as adam from './reference/adam';
import * as attention from './reference/attention';
import * as attentionPool from './reference/attention_pool';
import * as cast from './reference/cast';
import * as elementwise from './reference/elementwise';
import * as embedding from './reference/embedding';
import * as gelu from './reference/gelu';
import * as groupMatmul from './reference/group_matmul';
import * as l2Normalize from './reference/l2_normalize';
import * as layerNorm from './reference/layer_norm';
import * as learnability from './reference/learnability';
import * as linear from './reference/linear';
import * as linearBfloat16 from './reference/linear_bfloat16';
import * as linearInt8 from './reference/linear_int8';
import * as maskTokens from './reference/mask_tokens';
import * as matmul from './reference/matmul';
import type { NdArray } from './reference/nd_array';
import { elements, item, map, ndArray, reshape, scalar } from './reference/nd_array';
import * as normalizePixels from './reference/normalize_pixels';
import { Packing } from './reference/packing';
import * as patchify from './reference/patchify';
import * as positionResize from './reference/position_resize';
import * as prototypeLoss from './reference/prototype_loss';
import type { Random } from './reference/random';
import * as reduce from './reference/reduce';
import * as sigmoidLoss from './reference/sigmoid_loss';
import * as token from './reference/token';
import * as vocabularyLoss from './reference/vocabulary_loss';

export type Tensors = Readonly<Record<string, Tensor>>;
export type Arrays = Readonly<Record<string, NdArray>>;

/** `exact`: the same bits, given the same float32 inputs. `f32`: a float32 computation of good order. */
export type Tolerance = 'exact' | 'f32';

/** Arithmetic and memory traffic of one call, each operand and result counted once. */
export interface Cost {
  readonly flops: number;
  readonly bytes: number;
}

/** One operand of a case. */
export interface Operand {
  readonly spec: Spec;
  /** One value. Default: standard normal for float32. */
  readonly draw: (random: Random) => number;
  /** The values where they are not independent draws. */
  readonly values?: NdArray;
  /** Default: float32 operands are. */
  readonly differentiable: boolean;
  /** Updated in place: the operand that a run may overwrite. */
  readonly donated: boolean;
}

/** An operation applied to operands of given shapes. */
export interface OpCase {
  /** The operation's word, as in its file names. */
  readonly op: string;
  /** Sizes and what is special. */
  readonly name: string;
  readonly operands: Readonly<Record<string, Operand>>;
  readonly apply: (operands: Tensors) => Tensors;
  readonly reference: (operands: Arrays) => Arrays;
  /** Gradients by operand from gradients by result. Absent: the operation has none. */
  readonly backward?: (gradients: Arrays, operands: Arrays) => Arrays;
  readonly tolerance: Tolerance;
  /** By how much the case amplifies a rounding of its operands. */
  readonly condition: number;
  /** A rounding of its operands to bfloat16 gives another result altogether. */
  readonly steep: boolean;
  /** Not differentiable everywhere: no comparison with differences. */
  readonly kink: boolean;
  /** Operand shapes that must be refused with ERR_SHAPE. */
  readonly refuses: readonly Readonly<Record<string, readonly number[]>>[];
  readonly cost: { readonly forward: Cost; readonly backward?: Cost };
}

type Options = Partial<Omit<Operand, 'spec'>>;

function operand(dtype: DType, shape: readonly number[], options: Options): Operand {
  return {
    spec: { dtype, shape },
    draw: (random) => random.normal(),
    differentiable: dtype === 'float32',
    donated: false,
    ...options,
  };
}

function f32(shape: readonly number[], options: Options = {}): Operand {
  return operand('float32', shape, options);
}

/** int32 operand of integers in [0, below). */
function ids(shape: readonly number[], below: number): Operand {
  return operand('int32', shape, { draw: (random) => random.integer(below) });
}

function constant(dtype: DType, values: NdArray): Operand {
  return operand(dtype, values.shape, { values });
}

const scaled =
  (factor: number) =>
  (random: Random): number =>
    factor * random.normal();

/** Defaults of a case: f32, smooth, nothing to refuse. */
function opCase(
  parts: Pick<OpCase, 'op' | 'name' | 'operands' | 'apply' | 'reference' | 'cost'> &
    Partial<OpCase>,
): OpCase {
  return { tolerance: 'f32', condition: 1, steep: false, kink: false, refuses: [], ...parts };
}

const FLOAT = 4;

/** Bytes of float32 tensors of these element counts. */
function floats(...counts: number[]): number {
  return FLOAT * counts.reduce((sum, n) => sum + n, 0);
}

function text(shape: readonly number[]): string {
  return shape.join('x');
}

// ---- Products ----

function linearCase(lead: readonly number[], K: number, N: number, bias = true): OpCase {
  const M = elements(lead);
  const traffic = floats(M * K, N * K, M * N);
  return opCase({
    op: 'linear',
    name: `${text([...lead, K])} to ${String(N)}${bias ? '' : ' without bias'}`,
    operands: {
      x: f32([...lead, K]),
      weight: f32([N, K], { draw: scaled(1 / Math.sqrt(K)) }),
      ...(bias ? { bias: f32([N]) } : {}),
    },
    apply: (t) => ({ y: ops.linear(t.x, t.weight, bias ? t.bias : null) }),
    reference: (a) => ({ y: linear.linear(a.x, a.weight, bias ? a.bias : undefined) }),
    backward: ({ y: dy }, { x, weight }) => {
      const { dx, dweight, dbias } = linear.linearBackward(dy, x, weight);
      return { x: dx, weight: dweight, ...(bias ? { bias: dbias } : {}) };
    },
    refuses: [
      { x: [...lead, K + 1] },
      { weight: [N, K + 1] },
      ...(bias ? [{ bias: [N + 1] }, { bias: [1, N] }] : []),
      { weight: [N * K] },
    ],
    cost: {
      forward: { flops: 2 * M * N * K, bytes: traffic },
      backward: { flops: 4 * M * N * K, bytes: 2 * traffic },
    },
  });
}

/** The two rewrites: GELU into the epilogue of the first layer, the residual into the second's. */
function mlpCase(lead: readonly number[], D: number, hidden: number): OpCase {
  const M = elements(lead);
  const traffic = floats(2 * M * D, 2 * D * hidden, 2 * M * hidden);
  return opCase({
    op: 'linear',
    name: `${text([...lead, D])} through ${String(hidden)} with GELU and residual`,
    operands: {
      x: f32([...lead, D]),
      weight1: f32([hidden, D], { draw: scaled(1 / Math.sqrt(D)) }),
      bias1: f32([hidden]),
      weight2: f32([D, hidden], { draw: scaled(1 / Math.sqrt(hidden)) }),
      bias2: f32([D]),
    },
    apply: (t) => ({
      y: ops.add(
        t.x,
        ops.linear(ops.gelu(ops.linear(t.x, t.weight1, t.bias1)), t.weight2, t.bias2),
      ),
    }),
    reference: (a) => {
      const inner = gelu.gelu(linear.linear(a.x, a.weight1, a.bias1));
      return { y: elementwise.add(a.x, linear.linear(inner, a.weight2, a.bias2)) };
    },
    backward: ({ y: dy }, a) => {
      const before = linear.linear(a.x, a.weight1, a.bias1);
      const second = linear.linearBackward(dy, gelu.gelu(before), a.weight2);
      const first = linear.linearBackward(gelu.geluBackward(second.dx, before), a.x, a.weight1);
      return {
        x: elementwise.add(dy, first.dx),
        weight1: first.dweight,
        bias1: first.dbias,
        weight2: second.dweight,
        bias2: second.dbias,
      };
    },
    cost: {
      forward: { flops: 4 * M * D * hidden, bytes: traffic },
      backward: { flops: 8 * M * D * hidden, bytes: 2 * traffic },
    },
  });
}

interface PackedForm {
  readonly precision: ops.Precision;
  /** x, W -> x · Wᵀ as the kernel computes it, before the bias. */
  readonly product: (x: NdArray, weight: NdArray) => NdArray;
  readonly weightBytes: number;
  /** Of a GELU in its epilogue: narrow ones compute it to 2⁻¹⁴. */
  readonly geluCondition: number;
}

const int8: PackedForm = {
  precision: 'int8',
  product: (x, weight) =>
    linearInt8.product(
      x,
      weight,
      linearInt8.levels(weight.shape[1], loadAddon().describe().features.includes('vnni')),
    ),
  weightBytes: 1,
  geluCondition: 10,
};

const bfloat16: PackedForm = {
  precision: 'bfloat16',
  product: linearBfloat16.product,
  weightBytes: 2,
  geluCondition: 10,
};

const float32Form: PackedForm = {
  precision: 'float32',
  product: linear.linear,
  weightBytes: 4,
  geluCondition: 1,
};
const packedForms = [float32Form, bfloat16, int8];

function packedLayer(form: PackedForm, x: Tensor, weight: Tensor, bias: Tensor): Tensor {
  const { pack, layer } = ops.packedLinear[form.precision];
  return layer(x, pack(weight), weight.shape[0] ?? 0, { bias });
}

function withBias(x: NdArray, bias: NdArray): NdArray {
  const N = bias.data.length;
  return { shape: x.shape, data: x.data.map((value, i) => value + bias.data[i % N]) };
}

/** Packs and multiplies: against the same arithmetic in float64. */
function packedLinearCase(
  form: PackedForm,
  lead: readonly number[],
  K: number,
  N: number,
  options: Options = {},
  suffix = '',
): OpCase {
  const M = elements(lead);
  const traffic = floats(M * K, M * N) + form.weightBytes * N * K;
  return opCase({
    op: `linear_${form.precision}`,
    name: `${text([...lead, K])} to ${String(N)}${suffix}`,
    operands: {
      x: f32([...lead, K], { differentiable: false, ...options }),
      weight: f32([N, K], { draw: scaled(1 / Math.sqrt(K)), differentiable: false }),
      bias: f32([N], { differentiable: false }),
    },
    apply: (t) => ({ y: packedLayer(form, t.x, t.weight, t.bias) }),
    reference: (a) => ({ y: withBias(form.product(a.x, a.weight), a.bias) }),
    refuses: [
      { x: [...lead, K + 4] },
      { weight: [N, K + 4] },
      { weight: [N + 64, K] },
      { weight: [N * K] },
      { bias: [N + 1] },
      { bias: [1, N] },
    ],
    cost: { forward: { flops: 2 * M * N * K, bytes: traffic } },
  });
}

/** GELU into the epilogue of the first layer, the residual into the second's. */
function packedMlpCase(
  form: PackedForm,
  lead: readonly number[],
  D: number,
  hidden: number,
): OpCase {
  const M = elements(lead);
  const fixed = { differentiable: false };
  return opCase({
    op: `linear_${form.precision}`,
    name: `${text([...lead, D])} through ${String(hidden)} with GELU and residual`,
    condition: form.geluCondition,
    operands: {
      x: f32([...lead, D], fixed),
      inner: f32([...lead, hidden], fixed),
      weight1: f32([hidden, D], { ...fixed, draw: scaled(1 / Math.sqrt(D)) }),
      bias1: f32([hidden], fixed),
      weight2: f32([D, hidden], { ...fixed, draw: scaled(1 / Math.sqrt(hidden)) }),
      bias2: f32([D], fixed),
    },
    // Two layers that do not feed each other: a value on the border of two integers may fall to
    // either side after the first layer's roundings.
    apply: (t) => {
      const before = packedLayer(form, t.x, t.weight1, t.bias1);
      return {
        before,
        activated: ops.gelu(before),
        y: ops.add(t.x, packedLayer(form, t.inner, t.weight2, t.bias2)),
      };
    },
    reference: (a) => {
      const before = withBias(form.product(a.x, a.weight1), a.bias1);
      return {
        before,
        activated: gelu.gelu(before),
        y: elementwise.add(a.x, withBias(form.product(a.inner, a.weight2), a.bias2)),
      };
    },
    cost: {
      forward: {
        flops: 4 * M * D * hidden,
        bytes: floats(2 * M * D, 2 * M * hidden) + 2 * form.weightBytes * D * hidden,
      },
    },
  });
}

/**
 * One layer with its weight packed beforehand and GELU or a residual in its epilogue, as a tower runs
 * it: for the benchmark. The packed bytes are those of a weight of zeros.
 */
function packedLayerCase(
  form: PackedForm,
  M: number,
  K: number,
  N: number,
  epilogue: 'bias' | 'gelu' | 'residual',
): OpCase {
  const fixed = { differentiable: false };
  return opCase({
    op: `linear_${form.precision}`,
    name: `${text([M, K])} to ${String(N)}, ${epilogue}`,
    condition: epilogue === 'gelu' ? form.geluCondition : 1,
    operands: {
      x: f32([M, K], fixed),
      packed: operand('uint8', [ops.packedLinear[form.precision].bytes(N, K)], { draw: () => 0 }),
      bias: f32([N], fixed),
      ...(epilogue === 'residual' ? { residual: f32([M, N], fixed) } : {}),
    },
    apply: (t) => {
      const y = ops.packedLinear[form.precision].layer(t.x, t.packed, N, { bias: t.bias });
      if (epilogue === 'residual') return { y: ops.add(t.residual, y) };
      return { y: epilogue === 'gelu' ? ops.gelu(y) : y };
    },
    reference: ({ bias, residual }) => {
      const y = withBias({ shape: [M, N], data: new Float64Array(M * N) }, bias);
      if (epilogue === 'residual') return { y: elementwise.add(residual, y) };
      return { y: epilogue === 'gelu' ? gelu.gelu(y) : y };
    },
    cost: {
      forward: {
        flops: 2 * M * N * K,
        bytes: floats(M * K, M * N) + form.weightBytes * N * K,
      },
    },
  });
}

function matmulCase(
  M: number,
  K: number,
  N: number,
  transposeA: boolean,
  transposeB: boolean,
): OpCase {
  const a = transposeA ? [K, M] : [M, K];
  const b = transposeB ? [N, K] : [K, N];
  const options = { transposeA, transposeB };
  const traffic = floats(M * K, K * N, M * N);
  return opCase({
    op: 'matmul',
    name: `${text(a)}${transposeA ? 'ᵀ' : ''} by ${text(b)}${transposeB ? 'ᵀ' : ''}`,
    operands: { a: f32(a), b: f32(b) },
    apply: (t) => ({ y: ops.matmul(t.a, t.b, options) }),
    reference: (x) => ({ y: matmul.matmul(x.a, x.b, options) }),
    backward: ({ y: dy }, x) => {
      const { da, db } = matmul.matmulBackward(dy, x.a, x.b, options);
      return { a: da, b: db };
    },
    refuses: [
      { a: transposeA ? [K + 1, M] : [M, K + 1] },
      { b: transposeB ? [N, K + 1] : [K + 1, N] },
      { a: [1, ...a] },
    ],
    cost: {
      forward: { flops: 2 * M * N * K, bytes: traffic },
      backward: { flops: 4 * M * N * K, bytes: 2 * traffic },
    },
  });
}

// ---- Attention ----

interface AttentionSizes {
  readonly B: number;
  readonly Tq: number;
  readonly Tk: number;
  readonly heads: number;
  readonly headWidth: number;
  /** Keys that count, per image; the rest are masked. */
  readonly keys?: readonly number[];
  /** Standard deviation of queries and keys; large ones make the softmax peaked. */
  readonly spread?: number;
}

function attentionCase({ B, Tq, Tk, heads, headWidth, keys, spread = 1 }: AttentionSizes): OpCase {
  const D = heads * headWidth;
  const mask =
    keys === undefined
      ? undefined
      : reshape(
          {
            shape: [B * Tk],
            data: Float64Array.from(
              keys.flatMap((n) => Array.from({ length: Tk }, (_, j) => (j < n ? 1 : 0))),
            ),
          },
          [B, Tk],
        );
  const referenceOptions = { heads, ...(mask === undefined ? {} : { keyMask: mask }) };
  const scores = B * heads * Tq * Tk;
  const traffic = floats(2 * B * Tq * D, 2 * B * Tk * D);
  return opCase({
    op: 'attention',
    name:
      `${text([B, Tq, Tk])}, ${String(heads)} heads of ${String(headWidth)}` +
      (keys === undefined ? '' : `, keys ${keys.join(' ')}`) +
      (spread === 1 ? '' : `, spread ${String(spread)}`),
    // Scores of up to 100, whose roundings are relative errors of the probabilities.
    condition: spread === 1 ? 1 : 2,
    operands: {
      q: f32([B, Tq, D], { draw: scaled(spread) }),
      k: f32([B, Tk, D], { draw: scaled(spread) }),
      v: f32([B, Tk, D]),
      ...(mask === undefined ? {} : { keyMask: constant('uint8', mask) }),
    },
    apply: (t) => ({
      o: ops.attention(t.q, t.k, t.v, { heads, keyMask: mask === undefined ? null : t.keyMask }),
    }),
    reference: (a) => ({ o: attention.attention(a.q, a.k, a.v, referenceOptions) }),
    backward: ({ o: dout }, { q, k, v }) => {
      const { dq, dk, dv } = attention.attentionBackward(dout, q, k, v, referenceOptions);
      return { q: dq, k: dk, v: dv };
    },
    refuses: [
      { q: [B, Tq, D + heads] },
      { q: [B + 1, Tq, D] },
      { k: [B, Tk + 1, D] },
      { v: [B, Tk, D + heads] },
      { q: [B * Tq, D] },
      ...(mask === undefined ? [] : [{ keyMask: [B, Tk + 1] }, { keyMask: [B, Tk, 1] }]),
    ],
    cost: {
      forward: { flops: 4 * scores * headWidth, bytes: traffic },
      backward: { flops: 10 * scores * headWidth, bytes: 2 * traffic },
    },
  });
}

/** Causal in the examples where `causal` is 1. */
function causalAttentionCase(
  causal: readonly number[],
  { T, heads, headWidth }: { T: number; heads: number; headWidth: number },
): OpCase {
  const B = causal.length;
  const D = heads * headWidth;
  const flags = ndArray([B], causal);
  const options = { heads, causal: flags };
  const scores = B * heads * T * T;
  return opCase({
    op: 'attention',
    name: `${text([B, T, T])}, ${String(heads)} heads of ${String(headWidth)}, causal ${causal.join(' ')}`,
    operands: {
      q: f32([B, T, D]),
      k: f32([B, T, D]),
      v: f32([B, T, D]),
      causal: constant('uint8', flags),
    },
    apply: (t) => ({ o: ops.attention(t.q, t.k, t.v, { heads, causal: t.causal }) }),
    reference: (a) => ({ o: attention.attention(a.q, a.k, a.v, options) }),
    backward: ({ o: dout }, { q, k, v }) => {
      const { dq, dk, dv } = attention.attentionBackward(dout, q, k, v, options);
      return { q: dq, k: dk, v: dv };
    },
    refuses: [{ causal: [B + 1] }, { causal: [B, 1] }, { k: [B, T + 1, D], v: [B, T + 1, D] }],
    cost: {
      forward: { flops: 4 * scores * headWidth, bytes: floats(4 * B * T * D) },
      backward: { flops: 10 * scores * headWidth, bytes: floats(8 * B * T * D) },
    },
  });
}

/** Queries (B, Tq, D) to packed memory, as many rows as `lengths` says for each. */
function packedMemoryCase({
  lengths,
  spare = 0,
  heads,
  headWidth,
  Tq,
}: PackedSizes & { readonly Tq: number }): OpCase {
  const B = lengths.length;
  const T = lengths.reduce((sum, n) => sum + n, spare);
  const D = heads * headWidth;
  const { segments, packing: p } = packing(lengths);
  const options = { heads, keyMask: p.mask };
  const scores = heads * Tq * (T - spare);
  return opCase({
    op: 'attention',
    name: `${String(Tq)} queries each to memory, ${lengthsText(lengths, spare)}, ${String(heads)} heads of ${String(headWidth)}`,
    operands: {
      q: f32([B, Tq, D]),
      k: f32([T, D]),
      v: f32([T, D]),
      segments: constant('int32', segments),
    },
    apply: (t) => ({
      o: ops.attention(t.q, t.k, t.v, { heads, keySegments: t.segments }),
    }),
    reference: (a) => ({ o: attention.attention(a.q, p.pad(a.k), p.pad(a.v), options) }),
    backward: ({ o: dout }, a) => {
      const { dq, dk, dv } = attention.attentionBackward(
        dout,
        a.q,
        p.pad(a.k),
        p.pad(a.v),
        options,
      );
      return { q: dq, k: p.pack(dk, T), v: p.pack(dv, T) };
    },
    refuses: [
      { q: [B, Tq, D + heads] },
      { q: [B + 1, Tq, D] },
      { q: [B * Tq, D] },
      { k: [1, T, D] },
      { v: [T + 1, D] },
      { segments: [B + 2] },
    ],
    cost: {
      forward: { flops: 4 * scores * headWidth, bytes: floats(2 * B * Tq * D, 2 * T * D) },
      backward: { flops: 10 * scores * headWidth, bytes: floats(4 * B * Tq * D, 4 * T * D) },
    },
  });
}

/** Starts of segments of these lengths, and the packed rows as the padded batch they equal. */
function packing(lengths: readonly number[]): { segments: NdArray; packing: Packing } {
  const starts = lengths.reduce<number[]>((all, n) => [...all, all[all.length - 1] + n], [0]);
  const segments = ndArray([starts.length], starts);
  return { segments, packing: new Packing(segments) };
}

interface PackedSizes {
  readonly lengths: readonly number[];
  /** Rows behind the last segment. Default 0. */
  readonly spare?: number;
  readonly heads: number;
  readonly headWidth: number;
}

function lengthsText(lengths: readonly number[], spare: number): string {
  const some = lengths.length > 8 ? `${String(lengths.length)} short` : lengths.join(' ');
  return `segments ${some}${spare === 0 ? '' : ` and ${String(spare)} spare rows`}`;
}

function packedAttentionCase({ lengths, spare = 0, heads, headWidth }: PackedSizes): OpCase {
  const T = lengths.reduce((sum, n) => sum + n, spare);
  const D = heads * headWidth;
  const { segments, packing: p } = packing(lengths);
  const options = { heads, keyMask: p.mask };
  const scores = heads * lengths.reduce((sum, n) => sum + n * n, 0);
  return opCase({
    op: 'attention',
    name: `${lengthsText(lengths, spare)}, ${String(heads)} heads of ${String(headWidth)}`,
    operands: {
      q: f32([T, D]),
      k: f32([T, D]),
      v: f32([T, D]),
      segments: constant('int32', segments),
    },
    apply: (t) => ({ o: ops.attention(t.q, t.k, t.v, { heads, segments: t.segments }) }),
    reference: (a) => ({
      o: p.pack(attention.attention(p.pad(a.q), p.pad(a.k), p.pad(a.v), options), T),
    }),
    backward: ({ o: dout }, a) => {
      const { dq, dk, dv } = attention.attentionBackward(
        p.pad(dout),
        p.pad(a.q),
        p.pad(a.k),
        p.pad(a.v),
        options,
      );
      return { q: p.pack(dq, T), k: p.pack(dk, T), v: p.pack(dv, T) };
    },
    refuses: [
      { q: [T, D + heads] },
      { k: [T + 1, D] },
      { v: [T, D + heads] },
      { q: [1, T, D] },
      { segments: [lengths.length + 1, 1] },
      { segments: [1] },
    ],
    cost: {
      forward: { flops: 4 * scores * headWidth, bytes: floats(4 * T * D) },
      backward: { flops: 10 * scores * headWidth, bytes: floats(8 * T * D) },
    },
  });
}

/** The columns [first, first + count) of a matrix or of several. */
function columns(x: NdArray, first: number, count: number): NdArray {
  const width = x.shape[x.shape.length - 1];
  const shape = [...x.shape.slice(0, -1), count];
  const at = (i: number): number => Math.floor(i / count) * width + first + (i % count);
  return ndArray(
    shape,
    Float64Array.from({ length: elements(shape) }, (_, i) => x.data[at(i)]),
  );
}

/** Three arrays of D columns side by side. */
function sideBySide(parts: readonly NdArray[], D: number): NdArray {
  const shape = [...parts[0].shape.slice(0, -1), 3 * D];
  const at = (i: number): number =>
    parts[Math.floor((i % (3 * D)) / D)].data[Math.floor(i / (3 * D)) * D + (i % D)];
  return ndArray(
    shape,
    Float64Array.from({ length: elements(shape) }, (_, i) => at(i)),
  );
}

/** A case of self-attention, its queries, keys and values being columns of one array. */
function joinedAttentionCase(c: OpCase, heads: number): OpCase {
  const { q } = c.operands;
  const limits = Object.entries(c.operands).filter(([name]) => !['q', 'k', 'v'].includes(name));
  const D = q.spec.shape[q.spec.shape.length - 1];
  const parts = (a: Arrays): Arrays => ({
    ...a,
    ...Object.fromEntries(['q', 'k', 'v'].map((name, i) => [name, columns(a.qkv, i * D, D)])),
  });
  const { backward } = c;
  return {
    ...c,
    op: 'joined_attention',
    operands: {
      qkv: { ...q, spec: f32([...q.spec.shape.slice(0, -1), 3 * D]).spec },
      ...Object.fromEntries(limits),
    },
    apply: ({ qkv, ...t }) => ({ o: ops.joinedAttention(qkv, { heads, ...t }) }),
    reference: (a) => c.reference(parts(a)),
    ...(backward === undefined
      ? {}
      : {
          backward: (gradients, a) => {
            const { q: dq, k: dk, v: dv } = backward(gradients, parts(a));
            return { qkv: sideBySide([dq, dk, dv], D) };
          },
        }),
    refuses: [{ qkv: [...q.spec.shape.slice(0, -1), 3 * D + 1] }, { qkv: [3 * D] }],
  };
}

function joinRowsCase(row: readonly number[], counts: readonly number[]): OpCase {
  const names = counts.map((_, i) => `part${String(i)}`);
  const rows = counts.reduce((sum, count) => sum + count);
  const [first] = counts;
  return opCase({
    op: 'join_rows',
    name: `${counts.join(' and ')} rows of ${text(row)}, and the first again`,
    operands: Object.fromEntries(names.map((name, i) => [name, f32([counts[i], ...row])])),
    apply: (t) => {
      const y = ops.joinRows(names.map((name) => t[name]));
      return { y, first: ops.rowRange(y, 0, first), last: ops.rowRange(y, rows - 1, 1) };
    },
    reference: (a) => {
      const y = ndArray(
        [rows, ...row],
        names.flatMap((name) => [...a[name].data]),
      );
      const range = (begin: number, count: number): NdArray =>
        ndArray(
          [count, ...row],
          y.data.subarray(begin * elements(row), (begin + count) * elements(row)),
        );
      return { y, first: range(0, first), last: range(rows - 1, 1) };
    },
    tolerance: 'exact',
    refuses: [{ part1: [counts[1], ...row, 2] }],
    cost: { forward: { flops: 0, bytes: 2 * floats(rows * elements(row)) } },
  });
}

interface PoolSizes {
  readonly B: number;
  readonly N: number;
  readonly H: number;
  readonly D: number;
  /** One query for all images, or one each. Default one for all. */
  readonly own?: boolean;
  /** Which tokens count, per image. */
  readonly counts?: readonly (readonly number[])[];
  /** Standard deviation of the scores. */
  readonly spread?: number;
}

function attentionPoolCase({ B, N, H, D, own = false, counts, spread = 1 }: PoolSizes): OpCase {
  const keyMask = counts === undefined ? undefined : ndArray([B, N], counts.flat());
  const u = own ? [B, H, D] : [H, D];
  const traffic = floats(2 * B * N * D, elements(u), B * H * D);
  return opCase({
    op: 'attention_pool',
    name:
      `${text([B, N, D])}, ${String(H)} heads${own ? ' of its own' : ''}` +
      (counts === undefined ? '' : ', masked') +
      (spread === 1 ? '' : `, spread ${String(spread)}`),
    operands: {
      x: f32([B, N, D]),
      u: f32(u, { draw: scaled(spread / Math.sqrt(D)) }),
      ...(keyMask === undefined ? {} : { keyMask: constant('uint8', keyMask) }),
    },
    apply: (t) => ({
      y: ops.attentionPool(t.x, t.u, { keyMask: keyMask === undefined ? null : t.keyMask }),
    }),
    reference: (a) => ({ y: attentionPool.attentionPool(a.x, a.u, { keyMask }) }),
    backward: ({ y: dy }, a) => {
      const { dx, du } = attentionPool.attentionPoolBackward(dy, a.x, a.u, { keyMask });
      return { x: dx, u: du };
    },
    refuses: [
      { x: [B, N, D + 1] },
      { x: [N, D] },
      { u: [H, D + 1] },
      { u: [1, B, H, D] },
      ...(own ? [{ u: [B + 1, H, D] }] : []),
      ...(keyMask === undefined ? [] : [{ keyMask: [B, N + 1] }, { keyMask: [B, N, 1] }]),
    ],
    cost: {
      forward: { flops: 4 * B * N * D * H, bytes: traffic },
      backward: { flops: 12 * B * N * D * H, bytes: 2 * traffic },
    },
  });
}

function packedPoolCase(lengths: readonly number[], spare: number, H: number, D: number): OpCase {
  const T = lengths.reduce((sum, n) => sum + n, spare);
  const { segments, packing: p } = packing(lengths);
  const options = { keyMask: p.mask };
  const S = lengths.length;
  return opCase({
    op: 'attention_pool',
    name: `${lengthsText(lengths, spare)} of ${String(D)}, ${String(H)} heads`,
    operands: {
      x: f32([T, D]),
      u: f32([H, D], { draw: scaled(1 / Math.sqrt(D)) }),
      segments: constant('int32', segments),
    },
    apply: (t) => ({ y: ops.attentionPool(t.x, t.u, { segments: t.segments }) }),
    reference: (a) => ({ y: attentionPool.attentionPool(p.pad(a.x), a.u, options) }),
    backward: ({ y: dy }, a) => {
      const { dx, du } = attentionPool.attentionPoolBackward(dy, p.pad(a.x), a.u, options);
      return { x: p.pack(dx, T), u: du };
    },
    // The gradient of u cancels in a sequence of one token.
    condition: lengths.includes(1) ? 20 : 1,
    refuses: [
      { x: [T, D + 1] },
      { x: [1, T, D] },
      { u: [S + 1, H, D] },
      { segments: [S + 1, 1] },
      { segments: [1] },
    ],
    cost: {
      forward: { flops: 4 * T * D * H, bytes: floats(2 * T * D) },
      backward: { flops: 12 * T * D * H, bytes: floats(4 * T * D) },
    },
  });
}

function groupMatmulCase(M: number, G: number, K: number, N: number, transposeB: boolean): OpCase {
  const b = transposeB ? [G, N, K] : [G, K, N];
  const traffic = floats(M * G * K, G * K * N, M * G * N);
  return opCase({
    op: 'group_matmul',
    name: `${text([M, G, K])} by ${text(b)}${transposeB ? 'ᵀ' : ''}`,
    operands: { a: f32([M, G, K]), b: f32(b, { draw: scaled(1 / Math.sqrt(K)) }) },
    apply: (t) => ({ y: ops.groupMatmul(t.a, t.b, { transposeB }) }),
    reference: (a) => ({ y: groupMatmul.groupMatmul(a.a, a.b, transposeB) }),
    backward: ({ y: dy }, a) => {
      const { da, db } = groupMatmul.groupMatmulBackward(dy, a.a, a.b, transposeB);
      return { a: da, b: db };
    },
    refuses: [
      { a: [M, G, K + 1] },
      { a: [M, G + 1, K] },
      { a: [M, G * K] },
      { b: transposeB ? [G, N, K + 1] : [G, K + 1, N] },
    ],
    cost: {
      forward: { flops: 2 * M * G * N * K, bytes: traffic },
      backward: { flops: 4 * M * G * N * K, bytes: 2 * traffic },
    },
  });
}

// ---- Norms and pointwise ----

function layerNormCase(
  shape: readonly number[],
  options: Options = {},
  parts: Partial<OpCase> = {},
  hasBias = true,
): OpCase {
  const D = shape[shape.length - 1];
  const n = elements(shape);
  const eps = 1e-6;
  return opCase({
    op: 'layer_norm',
    name: `${text(shape)}${hasBias ? '' : ' without bias'}`,
    operands: {
      x: f32(shape, options),
      weight: f32([D], { draw: (random) => 1 + 0.2 * random.normal() }),
      ...(hasBias ? { bias: f32([D]) } : {}),
    },
    apply: (t) => ({ y: ops.layerNorm(t.x, t.weight, hasBias ? t.bias : null, { eps }) }),
    reference: (a) => ({
      y: layerNorm.layerNorm(
        a.x,
        a.weight,
        hasBias ? a.bias : ndArray([D], Array<number>(D).fill(0)),
        eps,
      ),
    }),
    backward: ({ y: dy }, { x, weight }) => {
      const { dx, dweight, dbias } = layerNorm.layerNormBackward(dy, x, weight, eps);
      return { x: dx, weight: dweight, ...(hasBias ? { bias: dbias } : {}) };
    },
    refuses: [{ weight: [D + 1] }, { weight: [1, D] }, ...(hasBias ? [{ bias: [D + 1] }] : [])],
    cost: {
      forward: { flops: 8 * n, bytes: floats(2 * n) },
      backward: { flops: 14 * n, bytes: floats(3 * n) },
    },
    ...parts,
  });
}

function geluCase(
  shape: readonly number[],
  options: Options = {},
  remark = '',
  form: 'tanh' | 'erf' = 'tanh',
): OpCase {
  const n = elements(shape);
  const forward = form === 'erf' ? gelu.geluErf : gelu.gelu;
  const backward = form === 'erf' ? gelu.geluErfBackward : gelu.geluBackward;
  return opCase({
    op: 'gelu',
    name: `${text(shape)}${remark}${form === 'erf' ? ', erf' : ''}`,
    operands: { x: f32(shape, options) },
    apply: (t) => ({ y: ops.gelu(t.x, form) }),
    reference: (a) => ({ y: forward(a.x) }),
    backward: ({ y: dy }, a) => ({ x: backward(dy, a.x) }),
    cost: {
      forward: { flops: 15 * n, bytes: floats(2 * n) },
      backward: { flops: 20 * n, bytes: floats(3 * n) },
    },
  });
}

function l2NormalizeCase(
  shape: readonly number[],
  parts: Partial<OpCase> = {},
  options: Options = {},
): OpCase {
  const n = elements(shape);
  const eps = 1e-8;
  return opCase({
    op: 'l2_normalize',
    name: text(shape),
    operands: { x: f32(shape, options) },
    apply: (t) => ({ y: ops.l2Normalize(t.x, { eps }) }),
    reference: (a) => ({ y: l2Normalize.l2Normalize(a.x, eps) }),
    backward: ({ y: dy }, a) => ({ x: l2Normalize.l2NormalizeBackward(dy, a.x, eps) }),
    cost: {
      forward: { flops: 3 * n, bytes: floats(2 * n) },
      backward: { flops: 7 * n, bytes: floats(3 * n) },
    },
    ...parts,
  });
}

function addCase(shape: readonly number[]): OpCase {
  const n = elements(shape);
  return opCase({
    op: 'add',
    name: text(shape),
    operands: { a: f32(shape), b: f32(shape) },
    apply: (t) => ({ y: ops.add(t.a, t.b) }),
    reference: (x) => ({ y: elementwise.add(x.a, x.b) }),
    backward: ({ y: dy }) => ({ a: dy, b: dy }),
    tolerance: 'exact',
    refuses: [{ b: [...shape, 1] }, { b: [shape[0] + 1, ...shape.slice(1)] }],
    cost: { forward: { flops: n, bytes: floats(3 * n) } },
  });
}

function castCase(shape: readonly number[], options: Options = {}): OpCase {
  const n = elements(shape);
  return opCase({
    op: 'cast',
    name: `${text(shape)} to bfloat16 and back`,
    operands: { x: f32(shape, options) },
    apply: (t) => ({ y: ops.cast(ops.cast(t.x, 'bfloat16'), 'float32') }),
    reference: (a) => ({ y: map(a.x, cast.toBfloat16) }),
    backward: ({ y: dy }) => ({ x: map(dy, cast.toBfloat16) }),
    tolerance: 'exact',
    kink: true,
    cost: {
      forward: { flops: 0, bytes: 3 * floats(n) },
      backward: { flops: 0, bytes: 3 * floats(n) },
    },
  });
}

function addRowCase(shape: readonly number[]): OpCase {
  const n = elements(shape);
  const row = shape.slice(1);
  return opCase({
    op: 'add_row',
    name: text(shape),
    operands: { x: f32(shape), row: f32(row) },
    apply: (t) => ({ y: ops.addRow(t.x, t.row) }),
    reference: (a) => ({ y: elementwise.addRow(a.x, a.row) }),
    backward: ({ y: dy }) => {
      const { dx, drow } = elementwise.addRowBackward(dy);
      return { x: dx, row: drow };
    },
    refuses: [{ row: shape }, { row: [row[0] + 1, ...row.slice(1)] }],
    cost: {
      forward: { flops: n, bytes: floats(2 * n, elements(row)) },
      backward: { flops: n, bytes: floats(n, elements(row)) },
    },
  });
}

function repeatRowCase(batch: number, row: readonly number[]): OpCase {
  const n = batch * elements(row);
  return opCase({
    op: 'repeat_row',
    name: `${text(row)} by ${String(batch)}`,
    operands: { row: f32(row) },
    apply: (t) => ({ y: ops.repeatRow(t.row, batch) }),
    reference: (a) => ({ y: elementwise.repeatRow(a.row, batch) }),
    backward: ({ y: dy }) => ({ row: reduce.sumRows(dy) }),
    cost: {
      forward: { flops: 0, bytes: floats(n, elements(row)) },
      backward: { flops: n, bytes: floats(n, elements(row)) },
    },
  });
}

function scaleCase(shape: readonly number[]): OpCase {
  const n = elements(shape);
  return opCase({
    op: 'scale',
    name: `${text(shape)} by a tensor`,
    operands: { x: f32(shape), factor: f32([1]) },
    apply: (t) => ({ y: ops.scale(t.x, t.factor) }),
    reference: (a) => ({ y: elementwise.scale(a.x, a.factor) }),
    backward: ({ y: dy }, { x, factor }) => {
      const { dx, dfactor } = elementwise.scaleBackward(dy, x, factor);
      return { x: dx, factor: dfactor };
    },
    refuses: [{ factor: [2] }, { factor: [1, 1] }],
    cost: {
      forward: { flops: n, bytes: floats(2 * n) },
      backward: { flops: 3 * n, bytes: floats(3 * n) },
    },
  });
}

function scaleByCase(shape: readonly number[], factor: number): OpCase {
  const n = elements(shape);
  return opCase({
    op: 'scale',
    name: `${text(shape)} by ${String(factor)}`,
    operands: { x: f32(shape) },
    apply: (t) => ({ y: ops.scaleBy(t.x, factor) }),
    reference: (a) => ({ y: elementwise.scaleBy(a.x, factor) }),
    backward: ({ y: dy }) => ({ x: elementwise.scaleBy(dy, factor) }),
    cost: {
      forward: { flops: n, bytes: floats(2 * n) },
      backward: { flops: n, bytes: floats(2 * n) },
    },
  });
}

// ---- Gathering and shapes ----

function embeddingCase(V: number, D: number, shape: readonly number[]): OpCase {
  const n = elements(shape) * D;
  return opCase({
    op: 'embedding',
    name: `${text(shape)} of ${text([V, D])}`,
    operands: { table: f32([V, D]), ids: ids(shape, V) },
    apply: (t) => ({ y: ops.embedding(t.table, t.ids) }),
    reference: (a) => ({ y: embedding.embedding(a.table, a.ids) }),
    backward: ({ y: dy }, a) => ({ table: embedding.embeddingBackward(dy, a.ids, a.table) }),
    refuses: [{ table: [V * D] }, { table: [V, D, 1] }],
    cost: {
      forward: { flops: 0, bytes: floats(2 * n, elements(shape)) },
      backward: { flops: n, bytes: floats(n, V * D, elements(shape)) },
    },
  });
}

function patchifyCase(images: readonly number[], patch: number): OpCase {
  const n = elements(images);
  return opCase({
    op: 'patchify',
    name: `${text(images)} by ${String(patch)}`,
    operands: { images: f32(images) },
    apply: (t) => ({ patches: ops.patchify(t.images, patch) }),
    reference: (a) => ({ patches: patchify.patchify(a.images, patch) }),
    backward: ({ patches }, a) => ({ images: patchify.patchifyBackward(patches, a.images, patch) }),
    tolerance: 'exact',
    refuses: [
      { images: images.slice(1) },
      { images: [images[0], images[1], patch - 1, images[3]] },
    ],
    cost: {
      forward: { flops: 0, bytes: floats(2 * n) },
      backward: { flops: 0, bytes: floats(2 * n) },
    },
  });
}

function positionResizeCase(
  n: number,
  D: number,
  grids: readonly (readonly [number, number])[],
  length: number,
): OpCase {
  const B = grids.length;
  const shapes = reshape({ shape: [2 * B], data: Float64Array.from(grids.flat()) }, [B, 2]);
  const out = B * length * D;
  return opCase({
    op: 'position_resize',
    name: `${text([n, n, D])} to ${grids.map(text).join(' ')} in ${String(length)}`,
    operands: { grid: f32([n * n, D]), shapes: constant('int32', shapes) },
    apply: (t) => ({ positions: ops.positionResize(t.grid, t.shapes, length) }),
    reference: (a) => ({ positions: positionResize.positionResize(a.grid, a.shapes, length) }),
    backward: ({ positions }, a) => ({
      grid: positionResize.positionResizeBackward(positions, a.shapes, a.grid),
    }),
    refuses: [{ grid: [n * n + 1, D] }, { shapes: [B, 3] }, { shapes: [2 * B] }],
    cost: {
      forward: { flops: 8 * out, bytes: floats(n * n * D, out) },
      backward: { flops: 8 * out, bytes: floats(n * n * D, out) },
    },
  });
}

function packedPositionsCase(
  n: number,
  D: number,
  grids: readonly (readonly [number, number])[],
  spare: number,
): OpCase {
  const B = grids.length;
  const lengths = grids.map(([height, width]) => height * width);
  const { segments, packing: p } = packing(lengths);
  const shapes = ndArray([B, 2], grids.flat());
  const longest = Math.max(...lengths);
  const rows = lengths.reduce((sum, length) => sum + length, spare);
  return opCase({
    op: 'position_resize',
    name: `${text([n, n, D])} to ${grids.map(text).join(' ')} packed in ${String(rows)}`,
    operands: {
      grid: f32([n * n, D]),
      shapes: constant('int32', shapes),
      segments: constant('int32', segments),
    },
    apply: (t) => ({ positions: ops.positionResize(t.grid, t.shapes, rows, t.segments) }),
    reference: (a) => ({
      positions: p.pack(positionResize.positionResize(a.grid, a.shapes, longest), rows),
    }),
    backward: ({ positions }, a) => ({
      grid: positionResize.positionResizeBackward(p.pad(positions), a.shapes, a.grid),
    }),
    refuses: [{ grid: [n * n + 1, D] }, { shapes: [B + 1, 2] }, { segments: [B] }],
    cost: {
      forward: { flops: 8 * rows * D, bytes: floats(n * n * D, rows * D) },
      backward: { flops: 8 * rows * D, bytes: floats(n * n * D, rows * D) },
    },
  });
}

function tokenSelectCase(shape: readonly [number, number, number], index: number): OpCase {
  const [B, , D] = shape;
  return opCase({
    op: 'token',
    name: `${text(shape)} at ${String(index)}`,
    operands: { x: f32(shape) },
    apply: (t) => ({ y: ops.tokenSelect(t.x, index) }),
    reference: (a) => ({ y: token.tokenSelect(a.x, index) }),
    backward: ({ y: dy }, a) => ({ x: token.tokenSelectBackward(dy, a.x, index) }),
    tolerance: 'exact',
    refuses: [{ x: shape.slice(1) }],
    cost: {
      forward: { flops: 0, bytes: floats(2 * B * D) },
      backward: { flops: 0, bytes: floats(elements(shape), B * D) },
    },
  });
}

function tokenWriteCase(shape: readonly [number, number, number], at: readonly number[]): OpCase {
  const [B, , D] = shape;
  return opCase({
    op: 'token',
    name: `${text(shape)} written at ${at.join(' ')}`,
    operands: {
      sequences: f32(shape, { differentiable: false, donated: true }),
      token: f32([B, D], { differentiable: false }),
      positions: constant('int32', ndArray([B], at)),
    },
    apply: (t) => ({ sequences: ops.tokenWrite(t.sequences, t.token, t.positions) }),
    reference: (a) => ({ sequences: token.tokenWrite(a.sequences, a.token, a.positions) }),
    tolerance: 'exact',
    refuses: [{ token: [B, D + 1] }, { positions: [B + 1] }, { sequences: shape.slice(1) }],
    cost: { forward: { flops: 0, bytes: floats(2 * B * D) } },
  });
}

function tokenMeanCase(shape: readonly [number, number, number]): OpCase {
  const [B, , D] = shape;
  return opCase({
    op: 'token',
    name: `${text(shape)} mean`,
    operands: { x: f32(shape) },
    apply: (t) => ({ y: ops.tokenMean(t.x) }),
    reference: (a) => ({ y: token.tokenMean(a.x) }),
    backward: ({ y: dy }, a) => ({ x: token.tokenMeanBackward(dy, a.x) }),
    refuses: [{ x: shape.slice(1) }],
    cost: {
      forward: { flops: elements(shape), bytes: floats(elements(shape), B * D) },
      backward: { flops: B * D, bytes: floats(elements(shape), B * D) },
    },
  });
}

function normalizePixelsCase(B: number, height: number, width: number): OpCase {
  const n = B * height * width * 3;
  return opCase({
    op: 'normalize_pixels',
    name: text([B, height, width]),
    operands: {
      pixels: operand('uint8', [B, height, width, 3], { draw: (random) => random.integer(256) }),
      table: f32([3, 256], { differentiable: false }),
    },
    apply: (t) => ({ images: ops.normalizePixels(t.pixels, t.table) }),
    reference: (a) => ({ images: normalizePixels.normalizePixels(a.pixels, a.table) }),
    tolerance: 'exact',
    refuses: [
      { table: [256, 3] },
      { pixels: [B, 3, height, width + 1] },
      { pixels: [height, width, 3] },
    ],
    cost: { forward: { flops: 0, bytes: n + floats(n) } },
  });
}

// ---- Sums ----

function sumRowsCase(shape: readonly number[]): OpCase {
  const n = elements(shape);
  return opCase({
    op: 'sum_rows',
    name: text(shape),
    operands: { x: f32(shape) },
    apply: (t) => ({ y: ops.sumRows(t.x) }),
    reference: (a) => ({ y: reduce.sumRows(a.x) }),
    backward: ({ y: dy }) => ({ x: elementwise.repeatRow(dy, shape[0]) }),
    refuses: [{ x: [n] }],
    cost: {
      forward: { flops: n, bytes: floats(n, n / shape[0]) },
      backward: { flops: 0, bytes: floats(n, n / shape[0]) },
    },
  });
}

function rowSharesCase(rows: number, D: number, counts: readonly number[]): OpCase {
  const n = rows * D;
  const x = ndArray(
    [rows, D],
    counts.flatMap((count) => Array.from({ length: D }, (_, i) => (i < count ? 1 + (i % 3) : 0))),
  );
  return opCase({
    op: 'row_shares',
    name: text([rows, D]),
    operands: { x: { ...constant('float32', x), differentiable: false } },
    apply: (t) => ({ y: ops.rowShares(t.x) }),
    reference: (a) => ({ y: reduce.rowShares(a.x) }),
    cost: { forward: { flops: 2 * n, bytes: floats(2 * n) } },
  });
}

function dotCase(shape: readonly number[]): OpCase {
  const n = elements(shape);
  return opCase({
    op: 'dot',
    name: text(shape),
    operands: { a: f32(shape), b: f32(shape) },
    apply: (t) => ({ y: ops.dot(t.a, t.b) }),
    reference: (x) => ({ y: reduce.dot(x.a, x.b) }),
    backward: ({ y: dy }, x) => {
      const { da, db } = reduce.dotBackward(dy, x.a, x.b);
      return { a: da, b: db };
    },
    refuses: [{ b: [...shape, 1] }],
    cost: {
      forward: { flops: 2 * n, bytes: floats(2 * n) },
      backward: { flops: 2 * n, bytes: floats(4 * n) },
    },
  });
}

function globalNormCase(shapes: readonly (readonly number[])[]): OpCase {
  const n = shapes.reduce((sum, shape) => sum + elements(shape), 0);
  return opCase({
    op: 'global_norm',
    name: shapes.map(text).join(' '),
    operands: Object.fromEntries(
      shapes.map((shape, i) => [`x${String(i)}`, f32(shape, { differentiable: false })]),
    ),
    apply: (t) => ({ y: ops.globalNorm(Object.values(t)) }),
    reference: (a) => ({ y: reduce.globalNorm(Object.values(a)) }),
    cost: { forward: { flops: 2 * n, bytes: floats(n) } },
  });
}

function rootSumCase(count: number): OpCase {
  return opCase({
    op: 'global_norm',
    name: `root of the sum of ${String(count)} squares`,
    operands: Object.fromEntries(
      Array.from({ length: count }, (_, i) => [
        `x${String(i)}`,
        f32([1], { differentiable: false, draw: (random) => random.uniform() }),
      ]),
    ),
    apply: (t) => ({ y: ops.rootSum(Object.values(t)) }),
    reference: (a) => ({
      y: scalar(Math.sqrt(Object.values(a).reduce((sum, x) => sum + item(x), 0))),
    }),
    refuses: [{ x0: [2] }],
    cost: { forward: { flops: count, bytes: floats(count) } },
  });
}

// ---- Loss ----

interface LossSizes {
  readonly R: number;
  readonly C: number;
  readonly E: number;
  readonly offset?: number;
  readonly batch?: number;
  /** exp(t); 10 at the start of training, above 100 at its end. */
  readonly scale?: number;
  readonly bias?: number;
}

function sigmoidLossCase({
  R,
  C,
  E,
  offset = 0,
  batch = R,
  scale = 10,
  bias = -10,
}: LossSizes): OpCase {
  const options = { offset, batch };
  const unit = (random: Random): number => random.normal() / Math.sqrt(E);
  const traffic = floats(R * E, C * E);
  return opCase({
    op: 'sigmoid_loss',
    name: `${text([R, C, E])} offset ${String(offset)} of ${String(batch)}, scale ${String(scale)}, bias ${String(bias)}`,
    steep: scale >= 400,
    operands: {
      images: f32([R, E], { draw: unit }),
      texts: f32([C, E], { draw: unit }),
      logitScale: f32([1], { draw: () => Math.log(scale) }),
      logitBias: f32([1], { draw: () => bias }),
    },
    apply: (t) => ({
      loss: ops.sigmoidLoss(t.images, t.texts, t.logitScale, t.logitBias, options),
    }),
    reference: (a) => ({
      loss: sigmoidLoss.sigmoidLoss(a.images, a.texts, a.logitScale, a.logitBias, options),
    }),
    backward: ({ loss: dloss }, a) => {
      const { dimages, dtexts, dlogitScale, dlogitBias } = sigmoidLoss.sigmoidLossBackward(
        dloss,
        a.images,
        a.texts,
        a.logitScale,
        a.logitBias,
        options,
      );
      return { images: dimages, texts: dtexts, logitScale: dlogitScale, logitBias: dlogitBias };
    },
    refuses: [
      { images: [R, E + 1] },
      { texts: [C, E + 1] },
      { logitScale: [2] },
      { logitBias: [1, 1] },
      { images: [R * E] },
    ],
    cost: {
      forward: { flops: 2 * R * C * E, bytes: traffic },
      backward: { flops: 6 * R * C * E, bytes: 2 * traffic },
    },
  });
}

interface VocabularySizes {
  readonly N: number;
  readonly V: number;
  readonly D: number;
  /** Every how many-th row has weight 0. Default: none. */
  readonly skipped?: number;
}

function vocabularyLossCase({ N, V, D, skipped = Infinity }: VocabularySizes): OpCase {
  const counting = N - Math.floor(N / skipped);
  const rowWeights = ndArray(
    [N],
    Array.from({ length: N }, (_, n) => ((n + 1) % skipped === 0 ? 0 : (1 + (n % 5)) / N)),
  );
  const traffic = floats(counting * D, V * D);
  return opCase({
    op: 'vocabulary_loss',
    name: `${text([N, D])} in ${String(V)} words${skipped === Infinity ? '' : `, every ${String(skipped)}th row skipped`}`,
    operands: {
      hidden: f32([N, D]),
      weight: f32([V, D], { draw: scaled(1 / Math.sqrt(D)) }),
      bias: f32([V]),
      labels: ids([N], V),
      rowWeights: { ...constant('float32', rowWeights), differentiable: false },
    },
    apply: (t) => ({
      loss: ops.vocabularyLoss(t.hidden, t.weight, t.bias, t.labels, t.rowWeights).loss,
    }),
    reference: (a) => ({
      loss: vocabularyLoss.vocabularyLoss(a.hidden, a.weight, a.bias, a.labels, a.rowWeights),
    }),
    backward: ({ loss: dloss }, a) => {
      const { dhidden, dweight, dbias } = vocabularyLoss.vocabularyLossBackward(
        dloss,
        a.hidden,
        a.weight,
        a.bias,
        a.labels,
        a.rowWeights,
      );
      return { hidden: dhidden, weight: dweight, bias: dbias };
    },
    refuses: [
      { hidden: [N, D + 1] },
      { weight: [V, D + 1] },
      { bias: [V + 1] },
      { labels: [N + 1] },
      { rowWeights: [N, 1] },
    ],
    cost: {
      forward: { flops: 2 * counting * V * D, bytes: traffic },
      backward: { flops: 6 * counting * V * D, bytes: 2 * traffic },
    },
  });
}

interface PrototypeSizes {
  /** Rows of the student. */
  readonly n: number;
  /** Rows of the teacher; the student's refer to them in turn. Default: one for each. */
  readonly m?: number;
  readonly K: number;
  readonly F: number;
  readonly studentTemperature?: number;
  readonly teacherTemperature?: number;
  /** Whether Sinkhorn-Knopp gives the centre. Default: it is an operand. */
  readonly sinkhorn?: boolean;
}

function unitRows(count: number, F: number, options: Options = {}): Operand {
  return f32([count, F], { draw: (random) => random.normal() / Math.sqrt(F), ...options });
}

function prototypeLossCase({
  n,
  m: teachers,
  K,
  F,
  studentTemperature = 0.1,
  teacherTemperature = 0.04,
  sinkhorn = false,
}: PrototypeSizes): OpCase {
  const still = { differentiable: false };
  const given = teachers !== undefined;
  const m = teachers ?? n;
  const rows = Float64Array.from({ length: n }, (_, i) => (7 * i) % m);
  const flops = 2 * (n + m) * K * F;
  const traffic = floats((n + m) * F, 2 * K * F, K);
  const operandsOf = (a: Arrays): prototypeLoss.PrototypeLossOperands => ({
    student: a.student,
    studentPrototypes: a.studentPrototypes,
    teacher: a.teacher,
    teacherPrototypes: a.teacherPrototypes,
    centre: sinkhorn
      ? prototypeLoss.sinkhornCentre(a.teacher, a.teacherPrototypes, teacherTemperature, 3)
      : a.centre,
    weights: a.weights,
    teacherRows: given ? a.teacherRows : undefined,
    teacherTemperature: a.teacherTemperature,
  });
  return opCase({
    op: 'prototype_loss',
    name: `${text([n, F])} for ${text([m, F])} over ${String(K)}${sinkhorn ? ' by Sinkhorn-Knopp' : ''}, temperatures ${String(studentTemperature)} and ${String(teacherTemperature)}`,
    condition: Math.max(1, 0.1 / teacherTemperature),
    operands: {
      student: unitRows(n, F),
      studentPrototypes: unitRows(K, F),
      teacher: unitRows(m, F, still),
      teacherPrototypes: unitRows(K, F, still),
      ...(sinkhorn ? {} : { centre: f32([K], { ...still, draw: scaled(0.02) }) }),
      weights: f32([n], { ...still, draw: (random) => random.uniform() / n }),
      ...(given ? { teacherRows: constant('int32', { shape: [n], data: rows }) } : {}),
      teacherTemperature: f32([1], { ...still, draw: () => teacherTemperature }),
    },
    apply: (t) => ({
      loss: ops.prototypeLoss(
        {
          student: t.student,
          studentPrototypes: t.studentPrototypes,
          teacher: t.teacher,
          teacherPrototypes: t.teacherPrototypes,
          centre: sinkhorn
            ? ops.sinkhornCentre(t.teacher, t.teacherPrototypes, t.teacherTemperature)
            : t.centre,
          weights: t.weights,
          teacherRows: given ? t.teacherRows : null,
          teacherTemperature: t.teacherTemperature,
        },
        { studentTemperature },
      ),
    }),
    reference: (a) => ({
      loss: prototypeLoss.prototypeLoss(operandsOf(a), studentTemperature),
    }),
    backward: ({ loss: dloss }, a) => {
      const { dstudent, dstudentPrototypes } = prototypeLoss.prototypeLossBackward(
        dloss,
        operandsOf(a),
        studentTemperature,
      );
      return { student: dstudent, studentPrototypes: dstudentPrototypes };
    },
    refuses: [
      { student: [n, F + 1] },
      { studentPrototypes: [K + 1, F] },
      { teacher: [m, F + 1] },
      { teacherPrototypes: [K, F + 1] },
      ...(sinkhorn ? [] : [{ centre: [K + 1] }]),
      { weights: [n + 1] },
      ...(given ? [{ teacherRows: [n + 1] }] : []),
      { teacherTemperature: [2] },
    ],
    cost: {
      forward: { flops, bytes: traffic },
      backward: { flops: 2 * (3 * n + m) * K * F, bytes: 2 * traffic },
    },
  });
}

// ---- Selection ----

interface ScoreSizes {
  readonly N: number;
  /** Widths of the learner's and of the reference's embeddings. */
  readonly widths: readonly [number, number];
  readonly weights?: ops.ScoreWeights;
  readonly loss?: ops.ScoreLoss;
}

const pairLossesOf = {
  sigmoid: learnability.pairLosses,
  softmax: learnability.softmaxPairLosses,
} as const satisfies Record<ops.ScoreLoss, typeof learnability.pairLosses>;

// What an operation needs of all examples: nothing for the sigmoid loss.
function logSumsOf(
  { loss = 'sigmoid', weights }: ScoreSizes,
  t: Readonly<Record<string, Tensor>>,
): Tensor | null {
  if (loss === 'sigmoid') return null;
  return ops.pairLogSums(modelOf(t, 'learner'), modelOf(t, 'reference'), weights);
}

// Operands of both models, and how to find them again.
function scoredModels({
  N,
  widths: [E, F],
  loss = 'sigmoid',
}: ScoreSizes): Record<string, Operand> {
  // Where one pair takes all of a row, 1 less its share is what float32 rounds away.
  const scales = loss === 'sigmoid' ? ([12, 30] as const) : ([4, 7] as const);
  const rows = (width: number): Operand =>
    f32([N, width], {
      draw: (random) => random.normal() / Math.sqrt(width),
      differentiable: false,
    });
  const constant = (value: number): Operand =>
    f32([1], { draw: () => value, differentiable: false });
  return {
    learnerImages: rows(E),
    learnerTexts: rows(E),
    learnerScale: constant(Math.log(scales[0])),
    learnerBias: constant(-4),
    referenceImages: rows(F),
    referenceTexts: rows(F),
    referenceScale: constant(Math.log(scales[1])),
    referenceBias: constant(-9),
  };
}

function modelOf<T>(operands: Readonly<Record<string, T>>, who: 'learner' | 'reference') {
  return {
    images: operands[`${who}Images`],
    texts: operands[`${who}Texts`],
    logitScale: operands[`${who}Scale`],
    logitBias: operands[`${who}Bias`],
  };
}

function learnabilityCase(sizes: ScoreSizes): OpCase {
  const { N, widths, weights = ops.scoreWeights.learnability, loss = 'sigmoid' } = sizes;
  const [E, F] = widths;
  const products = loss === 'sigmoid' ? 1 : 3;
  return opCase({
    op: 'learnability',
    name: `${loss}, ${text([N, E])} by ${String(F)}, weights ${String(weights.learnerWeight)} and ${String(weights.referenceWeight)}`,
    operands: scoredModels(sizes),
    // A log-sum of a few logits is all but one of them, which is then taken off.
    condition: loss === 'sigmoid' ? 1 : 4,
    apply: (t) =>
      ops.learnability(
        modelOf(t, 'learner'),
        modelOf(t, 'reference'),
        weights,
        logSumsOf(sizes, t),
      ),
    reference: (a) =>
      learnability.learnability(
        modelOf(a, 'learner'),
        modelOf(a, 'reference'),
        weights,
        pairLossesOf[loss],
      ),
    refuses: [
      { learnerTexts: [N, E + 1] },
      { learnerTexts: [N + 1, E] },
      { referenceImages: [N + 1, F] },
      { referenceTexts: [N, F + 1] },
      { learnerScale: [2] },
      { referenceBias: [1, 1] },
      { learnerImages: [N * E] },
    ],
    cost: {
      forward: {
        flops: products * 2 * N * N * (E + F),
        bytes: floats(2 * N * E, 2 * N * F, 3 * N),
      },
    },
  });
}

function pairLogSumsCase(sizes: ScoreSizes): OpCase {
  const { N, widths } = sizes;
  const [E, F] = widths;
  return opCase({
    op: 'learnability',
    name: `log sums, ${text([N, E])} by ${String(F)}`,
    operands: scoredModels({ ...sizes, loss: 'softmax' }),
    apply: (t) => ({ logSums: ops.pairLogSums(modelOf(t, 'learner'), modelOf(t, 'reference')) }),
    reference: (a) => {
      const all = (['learner', 'reference'] as const).map((who) =>
        learnability.logSums(modelOf(a, who)),
      );
      const data = all.flatMap(({ rows, columns }) => [...rows, ...columns]);
      return { logSums: { shape: [4, N], data: Float64Array.from(data) } };
    },
    refuses: [{ learnerTexts: [N, E + 1] }, { referenceImages: [N + 1, F] }],
    cost: {
      forward: { flops: 4 * N * N * (E + F), bytes: floats(2 * N * E, 2 * N * F, 4 * N) },
    },
  });
}

function conditionScoresCase(sizes: ScoreSizes, K: number): OpCase {
  const { N, widths, weights = ops.scoreWeights.learnability, loss = 'sigmoid' } = sizes;
  const [E, F] = widths;
  return opCase({
    op: 'learnability',
    name: `${loss}, ${text([N, E])} by ${String(F)} given ${String(K)}`,
    operands: {
      ...scoredModels(sizes),
      scores: f32([N], { differentiable: false }),
      chosen: ids([K], N),
    },
    apply: (t) => ({
      y: ops.conditionScores(
        modelOf(t, 'learner'),
        modelOf(t, 'reference'),
        t.scores,
        t.chosen,
        weights,
        logSumsOf(sizes, t),
      ),
    }),
    reference: (a) => ({
      y: learnability.conditionScores(
        modelOf(a, 'learner'),
        modelOf(a, 'reference'),
        a.scores,
        a.chosen,
        weights,
        pairLossesOf[loss],
      ),
    }),
    refuses: [{ scores: [N + 1] }, { chosen: [K, 1] }, { referenceTexts: [N, F + 1] }],
    cost: {
      forward: { flops: 4 * N * K * (E + F), bytes: floats(2 * N * E, 2 * N * F, 2 * N, K) },
    },
  });
}

// ---- Optimizer ----

function adamCase(
  shape: readonly number[],
  clipNorm: number,
  weightDecay: number,
  gradNorm: number,
): OpCase {
  const n = elements(shape);
  const still = { differentiable: false };
  const updated = { ...still, donated: true };
  const constants = {
    learningRate: 1e-3,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weightDecay,
    clipNorm,
  };
  return opCase({
    op: 'adam',
    name: `${text(shape)} decay ${String(weightDecay)}, clip ${String(clipNorm)} at norm ${String(gradNorm)}`,
    operands: {
      param: f32(shape, updated),
      m: f32(shape, { ...updated, draw: scaled(0.01) }),
      v: f32(shape, { ...updated, draw: (random) => 1e-3 * random.uniform() }),
      grad: f32(shape, still),
      gradNorm: f32([1], { ...still, draw: () => gradNorm }),
      schedule: constant('float32', { shape: [3], data: Float64Array.of(0.75, 0.27, 0.14) }),
    },
    apply: (t) => {
      const { newParam, newM, newV, updateSquares, paramSquares } = ops.adam(
        {
          param: t.param,
          m: t.m,
          v: t.v,
          grad: t.grad,
          gradNorm: t.gradNorm,
          schedule: t.schedule,
        },
        constants,
      );
      return { param: newParam, m: newM, v: newV, updateSquares, paramSquares };
    },
    reference: (a) => {
      const [multiplier, c1, c2] = a.schedule.data;
      const next = adam.adamUpdate(
        { param: a.param, m: a.m, v: a.v },
        a.grad,
        item(a.gradNorm),
        { multiplier, c1, c2 },
        constants,
      );
      return {
        param: next.param,
        m: next.m,
        v: next.v,
        updateSquares: scalar(next.updateSquares),
        paramSquares: scalar(next.paramSquares),
      };
    },
    refuses: [
      { m: [...shape, 1] },
      { v: [n + 1] },
      { grad: [n + 1] },
      { gradNorm: [2] },
      { schedule: [2] },
    ],
    cost: { forward: { flops: 16 * n, bytes: floats(7 * n) } },
  });
}

function accumulateCase(shape: readonly number[]): OpCase {
  const n = elements(shape);
  return opCase({
    op: 'accumulate',
    name: text(shape),
    operands: {
      accumulator: f32(shape, { differentiable: false, donated: true }),
      x: f32(shape, { differentiable: false }),
    },
    apply: (t) => ({ accumulator: ops.accumulate(t.accumulator, t.x) }),
    reference: (a) => ({ accumulator: elementwise.add(a.accumulator, a.x) }),
    tolerance: 'exact',
    refuses: [{ x: [...shape, 1] }],
    cost: { forward: { flops: n, bytes: floats(3 * n) } },
  });
}

function movingAverageCase(shape: readonly number[], momentum: number): OpCase {
  const n = elements(shape);
  return opCase({
    op: 'moving_average',
    name: `${text(shape)} at ${String(momentum)}`,
    operands: {
      average: f32(shape, { differentiable: false, donated: true }),
      x: f32(shape, { differentiable: false }),
    },
    apply: (t) => ({ average: ops.movingAverage(t.average, t.x, momentum) }),
    reference: (a) => ({ average: elementwise.movingAverage(a.average, a.x, momentum) }),
    refuses: [{ x: [...shape, 1] }],
    cost: { forward: { flops: 3 * n, bytes: floats(3 * n) } },
  });
}

function maskTokensCase(shape: readonly [number, number, number], share: number): OpCase {
  const [B, T, D] = shape;
  const n = B * T * D;
  return opCase({
    op: 'mask_tokens',
    name: `${text(shape)}, ${String(100 * share)} % masked`,
    operands: {
      x: f32(shape),
      mask: operand('uint8', [B, T], { draw: (random) => (random.uniform() < share ? 1 : 0) }),
      token: f32([D]),
    },
    apply: (t) => ({ y: ops.maskTokens(t.x, t.mask, t.token) }),
    reference: (a) => ({ y: maskTokens.maskTokens(a.x, a.mask, a.token) }),
    backward: ({ y: dy }, a) => {
      const { dx, dtoken } = maskTokens.maskTokensBackward(dy, a.mask);
      return { x: dx, token: dtoken };
    },
    refuses: [{ x: [B * T, D] }, { mask: [B, T + 1] }, { token: [D + 1] }],
    cost: {
      forward: { flops: 0, bytes: floats(2 * n) + B * T },
      backward: { flops: n, bytes: floats(2 * n, D) + B * T },
    },
  });
}

function reshapeCase(from: readonly number[], to: readonly number[]): OpCase {
  return opCase({
    op: 'reshape',
    name: `${text(from)} to ${text(to)}`,
    operands: { x: f32(from) },
    apply: (t) => ({ y: ops.reshape(t.x, to) }),
    reference: (a) => ({ y: reshape(a.x, to) }),
    backward: ({ y: dy }) => ({ x: reshape(dy, from) }),
    tolerance: 'exact',
    refuses: [{ x: [...from.slice(0, -1), from[from.length - 1] + 1] }],
    cost: { forward: { flops: 0, bytes: 0 } },
  });
}

/** Tiny cases for the tests: every edge of the blocking, and values at the ends of their range. */
export const opCases: readonly OpCase[] = [
  linearCase([1], 1, 1),
  linearCase([3], 5, 7),
  linearCase([2, 9], 48, 144),
  linearCase([17], 33, 16, false),
  linearCase([70], 200, 96),
  linearCase([5], 192, 300),
  mlpCase([2, 7], 24, 40),
  mlpCase([1, 1], 17, 65),
  ...packedForms.flatMap((form) => [
    packedLinearCase(form, [1], 1, 1),
    packedLinearCase(form, [3], 5, 7),
    packedLinearCase(form, [2, 9], 48, 144),
    packedLinearCase(form, [17], 33, 16),
    packedLinearCase(form, [13], 1, 65),
    packedLinearCase(form, [5], 1, 64),
    packedLinearCase(form, [6], 201, 1),
    packedLinearCase(form, [1], 515, 67),
    packedLinearCase(form, [7], 1307, 35),
    packedLinearCase(form, [70], 200, 96),
    packedLinearCase(form, [4], 31, 20, { draw: () => 0 }, ' of zeros'),
    packedLinearCase(form, [4], 31, 20, { draw: () => 3.25 }, ' of one value'),
    packedLinearCase(form, [4], 260, 20, { draw: (r) => r.normal() ** 7 }, ' with outliers'),
    packedLinearCase(form, [4], 31, 20, { draw: scaled(1e-25) }, ' tiny'),
    packedLinearCase(form, [4], 31, 20, { draw: scaled(1e30) }, ' huge'),
    packedMlpCase(form, [2, 7], 24, 40),
    packedMlpCase(form, [1, 1], 17, 65),
    packedLayerCase(form, 5, 12, 70, 'gelu'),
  ]),
  matmulCase(1, 1, 1, false, false),
  matmulCase(7, 19, 5, false, false),
  matmulCase(33, 40, 18, true, false),
  matmulCase(13, 70, 29, false, true),
  matmulCase(9, 8, 65, true, true),
  attentionCase({ B: 1, Tq: 1, Tk: 1, heads: 1, headWidth: 1 }),
  attentionCase({ B: 2, Tq: 5, Tk: 5, heads: 3, headWidth: 16 }),
  attentionCase({ B: 2, Tq: 17, Tk: 17, heads: 2, headWidth: 64 }),
  attentionCase({ B: 1, Tq: 37, Tk: 37, heads: 1, headWidth: 72 }),
  attentionCase({ B: 1, Tq: 66, Tk: 66, heads: 1, headWidth: 96 }),
  attentionCase({ B: 1, Tq: 130, Tk: 130, heads: 1, headWidth: 20 }),
  attentionCase({ B: 1, Tq: 196, Tk: 196, heads: 2, headWidth: 64 }),
  attentionCase({ B: 3, Tq: 1, Tk: 26, heads: 2, headWidth: 24 }),
  attentionCase({ B: 3, Tq: 9, Tk: 9, heads: 2, headWidth: 16, keys: [9, 4, 1] }),
  attentionCase({ B: 2, Tq: 1, Tk: 40, heads: 2, headWidth: 16, keys: [33, 2] }),
  attentionCase({ B: 2, Tq: 6, Tk: 6, heads: 1, headWidth: 8, keys: [6, 0] }),
  attentionCase({ B: 1, Tq: 12, Tk: 12, heads: 2, headWidth: 16, spread: 6 }),
  attentionCase({ B: 1, Tq: 40, Tk: 300, heads: 1, headWidth: 12, keys: [290] }),
  causalAttentionCase([1], { T: 1, heads: 1, headWidth: 4 }),
  causalAttentionCase([1, 0, 1], { T: 6, heads: 2, headWidth: 16 }),
  causalAttentionCase([0, 1], { T: 17, heads: 3, headWidth: 20 }),
  causalAttentionCase([1, 1], { T: 64, heads: 2, headWidth: 64 }),
  causalAttentionCase([1], { T: 131, heads: 1, headWidth: 24 }),
  packedMemoryCase({ Tq: 1, lengths: [3], heads: 1, headWidth: 12 }),
  packedMemoryCase({ Tq: 5, lengths: [7, 1, 20], spare: 4, heads: 2, headWidth: 16 }),
  packedMemoryCase({ Tq: 33, lengths: [9, 0, 70], spare: 1, heads: 2, headWidth: 24 }),
  packedAttentionCase({ lengths: [1], heads: 1, headWidth: 12 }),
  packedAttentionCase({ lengths: [37], spare: 3, heads: 2, headWidth: 72 }),
  packedAttentionCase({ lengths: [1, 20, 7, 33], spare: 5, heads: 2, headWidth: 64 }),
  packedAttentionCase({ lengths: [9, 0, 130, 2], heads: 1, headWidth: 96 }),
  packedAttentionCase({
    lengths: Array.from({ length: 40 }, (_, s) => 1 + (s % 5)),
    spare: 1,
    heads: 3,
    headWidth: 12,
  }),
  joinedAttentionCase(attentionCase({ B: 2, Tq: 5, Tk: 5, heads: 3, headWidth: 16 }), 3),
  joinedAttentionCase(attentionCase({ B: 2, Tq: 17, Tk: 17, heads: 2, headWidth: 64 }), 2),
  joinedAttentionCase(attentionCase({ B: 1, Tq: 70, Tk: 70, heads: 2, headWidth: 72 }), 2),
  joinedAttentionCase(attentionCase({ B: 2, Tq: 66, Tk: 66, heads: 1, headWidth: 96 }), 1),
  joinedAttentionCase(attentionCase({ B: 1, Tq: 300, Tk: 300, heads: 1, headWidth: 64 }), 1),
  joinedAttentionCase(
    attentionCase({ B: 3, Tq: 9, Tk: 9, heads: 2, headWidth: 16, keys: [9, 4, 1] }),
    2,
  ),
  joinedAttentionCase(
    packedAttentionCase({ lengths: [5, 0, 70, 1], spare: 3, heads: 2, headWidth: 24 }),
    2,
  ),
  joinRowsCase([5], [3, 1, 4]),
  joinRowsCase([], [7, 9]),
  joinRowsCase([4, 48], [6, 6, 6]),
  attentionPoolCase({ B: 1, N: 1, H: 1, D: 1 }),
  attentionPoolCase({ B: 3, N: 19, H: 2, D: 48 }),
  attentionPoolCase({ B: 2, N: 33, H: 30, D: 60 }),
  attentionPoolCase({ B: 3, N: 10, H: 5, D: 37, own: true }),
  attentionPoolCase({ B: 2, N: 12, H: 3, D: 16, spread: 6 }),
  attentionPoolCase({
    B: 3,
    N: 5,
    H: 3,
    D: 24,
    counts: [
      [1, 1, 1, 1, 1],
      [0, 1, 0, 1, 1],
      [0, 0, 0, 0, 0],
    ],
  }),
  packedPoolCase([1], 0, 2, 16),
  packedPoolCase([5, 1, 0, 40, 13], 3, 4, 27),
  groupMatmulCase(1, 1, 1, 1, false),
  groupMatmulCase(1, 3, 12, 36, false),
  groupMatmulCase(7, 4, 33, 9, true),
  layerNormCase([1, 3]),
  layerNormCase([3, 5]),
  layerNormCase([2, 9, 48]),
  layerNormCase([5, 48], {}, {}, false),
  layerNormCase([3, 19], {}, {}, false),
  layerNormCase([7, 100]),
  layerNormCase([40, 64]),
  layerNormCase(
    [4, 33],
    { draw: (random) => 1000 + random.normal() },
    { name: '4x33 far from zero', condition: 30 },
  ),
  geluCase([1]),
  geluCase([3, 37]),
  geluCase([41], { draw: scaled(12) }, ' with large values'),
  l2NormalizeCase([1, 1]),
  l2NormalizeCase([5, 48]),
  l2NormalizeCase([2, 3, 19]),
  l2NormalizeCase([3, 20], { name: '3x20 of zeros', kink: true }, { draw: () => 0 }),
  l2NormalizeCase([3, 20], { name: '3x20 tiny' }, { draw: scaled(1e-4) }),
  addCase([3, 37]),
  addRowCase([3, 5, 7]),
  castCase([3, 5, 7]),
  castCase([33], { draw: scaled(1e30) }),
  addRowCase([5, 33]),
  repeatRowCase(4, [1, 19]),
  repeatRowCase(3, [65]),
  scaleCase([3, 37]),
  scaleByCase([3, 37], -2.5),
  embeddingCase(11, 5, [2, 9]),
  embeddingCase(3, 48, [40]),
  patchifyCase([2, 3, 8, 8], 4),
  patchifyCase([1, 3, 30, 23], 7),
  positionResizeCase(4, 5, [[4, 4]], 16),
  positionResizeCase(
    4,
    19,
    [
      [3, 5],
      [5, 4],
      [1, 2],
    ],
    20,
  ),
  positionResizeCase(
    16,
    3,
    [
      [2, 31],
      [16, 16],
      [7, 9],
    ],
    256,
  ),
  packedPositionsCase(4, 5, [[4, 4]], 0),
  packedPositionsCase(
    4,
    19,
    [
      [3, 5],
      [1, 1],
      [5, 4],
    ],
    6,
  ),
  tokenSelectCase([3, 5, 19], 4),
  tokenSelectCase([2, 6, 33], 0),
  tokenMeanCase([3, 7, 19]),
  tokenWriteCase([3, 5, 19], [4, 0, 2]),
  normalizePixelsCase(2, 5, 7),
  sumRowsCase([9, 37]),
  sumRowsCase([3, 5, 7]),
  rowSharesCase(4, 7, [7, 3, 0, 1]),
  dotCase([3, 37]),
  dotCase([1]),
  dotCase([5000]),
  globalNormCase([[3, 37], [1], [200]]),
  rootSumCase(5),
  sigmoidLossCase({ R: 1, C: 1, E: 1 }),
  sigmoidLossCase({ R: 7, C: 7, E: 19 }),
  sigmoidLossCase({ R: 33, C: 33, E: 48, scale: 117, bias: -17 }),
  sigmoidLossCase({ R: 5, C: 9, E: 16, offset: 3, batch: 24, bias: -2 }),
  sigmoidLossCase({ R: 6, C: 6, E: 16, offset: -6, batch: 12, bias: 0 }),
  sigmoidLossCase({ R: 6, C: 6, E: 16, offset: 6, batch: 12, bias: 0 }),
  sigmoidLossCase({ R: 70, C: 130, E: 24, offset: 31, batch: 200, bias: -3 }),
  sigmoidLossCase({ R: 4, C: 4, E: 8, scale: 400, bias: 60 }),
  vocabularyLossCase({ N: 1, V: 1, D: 1 }),
  vocabularyLossCase({ N: 5, V: 7, D: 3 }),
  vocabularyLossCase({ N: 40, V: 211, D: 48, skipped: 4 }),
  vocabularyLossCase({ N: 7, V: 2100, D: 24 }),
  vocabularyLossCase({ N: 1100, V: 37, D: 16, skipped: 50 }),
  vocabularyLossCase({ N: 3, V: 9, D: 5, skipped: 1 }),
  learnabilityCase({ N: 1, widths: [1, 3] }),
  learnabilityCase({ N: 37, widths: [19, 24] }),
  learnabilityCase({ N: 70, widths: [16, 5], weights: ops.scoreWeights.easyReference }),
  learnabilityCase({ N: 20, widths: [8, 8], weights: ops.scoreWeights.hardLearner }),
  learnabilityCase({ N: 1, widths: [4, 3], loss: 'softmax' }),
  learnabilityCase({ N: 37, widths: [19, 24], loss: 'softmax' }),
  learnabilityCase({
    N: 70,
    widths: [16, 25],
    weights: ops.scoreWeights.hardLearner,
    loss: 'softmax',
  }),
  pairLogSumsCase({ N: 1, widths: [3, 2] }),
  pairLogSumsCase({ N: 37, widths: [19, 24] }),
  conditionScoresCase({ N: 37, widths: [19, 24] }, 5),
  conditionScoresCase({ N: 37, widths: [19, 24], loss: 'softmax' }, 5),
  conditionScoresCase({ N: 9, widths: [3, 2], weights: ops.scoreWeights.hardLearner }, 9),
  prototypeLossCase({ n: 1, m: 1, K: 1, F: 1, studentTemperature: 1, teacherTemperature: 1 }),
  prototypeLossCase({ n: 7, K: 19, F: 5 }),
  prototypeLossCase({ n: 24, m: 3, K: 96, F: 32 }),
  prototypeLossCase({ n: 5, m: 8, K: 33, F: 17, studentTemperature: 1, teacherTemperature: 0.5 }),
  prototypeLossCase({ n: 4, m: 2, K: 1100, F: 8, teacherTemperature: 0.01 }),
  prototypeLossCase({ n: 6, K: 96, F: 20, sinkhorn: true }),
  prototypeLossCase({ n: 8, m: 1, K: 7, F: 3, sinkhorn: true }),
  maskTokensCase([1, 1, 1], 1),
  maskTokensCase([3, 7, 19], 0.5),
  maskTokensCase([2, 5, 70], 0.2),
  movingAverageCase([3, 37], 0.966),
  movingAverageCase([19], 0),
  adamCase([37], 1, 0, 4),
  adamCase([5, 9], 1, 1e-4, 0.5),
  adamCase([5, 9], 1, 1e-4, Infinity),
  adamCase([1], 0, 1e-4, 9),
  accumulateCase([3, 37]),
  reshapeCase([6, 4], [2, 3, 4]),
];

/** Cases that kernels divide into several tasks, still quick in plain loops. */
export const splitCases: readonly OpCase[] = [
  linearCase([300], 256, 384),
  mlpCase([200], 128, 200),
  ...packedForms.flatMap((form) => [
    packedLinearCase(form, [300], 256, 384),
    packedLinearCase(form, [196], 140, 200),
    packedLinearCase(form, [3], 700, 500),
    packedLinearCase(form, [150], 2100, 40),
    packedMlpCase(form, [200], 128, 200),
  ]),
  matmulCase(260, 140, 300, false, true),
  matmulCase(260, 300, 140, true, false),
  attentionCase({ B: 4, Tq: 100, Tk: 100, heads: 4, headWidth: 32 }),
  causalAttentionCase([1, 1, 0, 1], { T: 100, heads: 4, headWidth: 32 }),
  packedMemoryCase({ Tq: 64, lengths: [90, 3, 150, 60], spare: 8, heads: 4, headWidth: 32 }),
  attentionCase({ B: 6, Tq: 1, Tk: 200, heads: 4, headWidth: 32 }),
  packedAttentionCase({ lengths: [90, 3, 150, 60, 33], spare: 8, heads: 4, headWidth: 32 }),
  attentionPoolCase({ B: 12, N: 150, H: 6, D: 70 }),
  packedPoolCase([90, 3, 150, 60, 33], 8, 6, 70),
  groupMatmulCase(60, 4, 70, 90, false),
  layerNormCase([600, 130]),
  geluCase([300, 130]),
  l2NormalizeCase([700, 70]),
  addCase([300, 130]),
  addRowCase([300, 11, 13]),
  repeatRowCase(300, [130]),
  castCase([300, 131]),
  scaleCase([300, 130]),
  scaleByCase([300, 130], 0.5),
  embeddingCase(700, 64, [40, 20]),
  patchifyCase([4, 3, 66, 60], 6),
  positionResizeCase(
    16,
    33,
    [
      [14, 18],
      [20, 12],
      [7, 36],
    ],
    256,
  ),
  tokenSelectCase([300, 5, 33], 2),
  tokenMeanCase([90, 40, 13]),
  normalizePixelsCase(4, 66, 60),
  sumRowsCase([700, 70]),
  dotCase([60000]),
  globalNormCase([[60000], [33, 70], [1]]),
  sigmoidLossCase({ R: 500, C: 500, E: 70 }),
  vocabularyLossCase({ N: 300, V: 1500, D: 70, skipped: 3 }),
  learnabilityCase({ N: 500, widths: [40, 30] }),
  learnabilityCase({ N: 500, widths: [40, 30], loss: 'softmax' }),
  pairLogSumsCase({ N: 500, widths: [40, 30] }),
  conditionScoresCase({ N: 600, widths: [40, 30] }, 150),
  prototypeLossCase({ n: 1100, m: 40, K: 1100, F: 5 }),
  prototypeLossCase({ n: 30, m: 1100, K: 1100, F: 4, sinkhorn: true }),
  maskTokensCase([30, 20, 70], 0.5),
  movingAverageCase([300, 130], 0.966),
  adamCase([300, 130], 1, 1e-4, 4),
  accumulateCase([300, 130]),
];

/**
 * Sizes at which kernels of a GPU take paths of their own: whole tiles, head widths and lengths of the
 * released towers, and one more or less than a tile. Too large for the reference's plain loops.
 */
export const deviceCases: readonly OpCase[] = [
  linearCase([512], 768, 768),
  linearCase([333], 768, 1152),
  linearCase([256], 1152, 4304),
  linearCase([256], 4304, 1152),
  linearCase([130], 588, 1152, false),
  mlpCase([4, 64], 1152, 4304),
  matmulCase(256, 768, 512, false, true),
  matmulCase(768, 520, 256, true, false),
  matmulCase(384, 768, 640, false, false),
  ...[64, 72, 96].flatMap((headWidth) =>
    [64, 196, 256, 576, 729, 1024].map((T) =>
      attentionCase({ B: 2, Tq: T, Tk: T, heads: 3, headWidth }),
    ),
  ),
  attentionCase({ B: 80, Tq: 256, Tk: 256, heads: 2, headWidth: 64 }),
  attentionCase({ B: 3, Tq: 257, Tk: 257, heads: 2, headWidth: 64 }),
  attentionCase({ B: 3, Tq: 255, Tk: 255, heads: 2, headWidth: 72 }),
  attentionCase({ B: 2, Tq: 128, Tk: 128, heads: 4, headWidth: 128 }),
  attentionCase({ B: 2, Tq: 100, Tk: 333, heads: 2, headWidth: 64 }),
  attentionCase({ B: 2, Tq: 64, Tk: 64, heads: 12, headWidth: 64, keys: [64, 17] }),
  attentionCase({ B: 2, Tq: 256, Tk: 256, heads: 2, headWidth: 64, spread: 5 }),
  attentionCase({ B: 2, Tq: 256, Tk: 256, heads: 3, headWidth: 72, spread: 5 }),
  packedAttentionCase({ lengths: [256, 1, 64, 300, 255], spare: 20, heads: 3, headWidth: 64 }),
  packedAttentionCase({ lengths: [256, 196], spare: 60, heads: 2, headWidth: 72 }),
  attentionPoolCase({ B: 3, N: 256, H: 12, D: 768 }),
  attentionPoolCase({ B: 2, N: 729, H: 16, D: 1152 }),
  groupMatmulCase(33, 16, 72, 1152, false),
  groupMatmulCase(16, 16, 1152, 72, true),
  ...[768, 1152, 1536].map((D) => layerNormCase([333, D])),
  geluCase([100, 4304]),
  l2NormalizeCase([300, 1152]),
  embeddingCase(5000, 768, [40, 64]),
  embeddingCase(3, 1152, [33, 64]),
  patchifyCase([3, 3, 224, 224], 14),
  tokenMeanCase([3, 256, 1152]),
  sumRowsCase([2000, 1152]),
  dotCase([1_000_003]),
  learnabilityCase({ N: 1024, widths: [768, 1152] }),
  conditionScoresCase({ N: 1024, widths: [768, 1152] }, 256),
  sigmoidLossCase({ R: 1024, C: 1024, E: 1152 }),
  sigmoidLossCase({ R: 300, C: 1111, E: 768, offset: 200, batch: 2048 }),
  adamCase([1_000_003], 1, 1e-4, 4),
  accumulateCase([1_000_003]),
];

const TOWER_ROWS = 8 * 196;

/** What a B/16 tower at 224 pixels does with eight images, and the loss of a real batch. */
export const modelCases: readonly OpCase[] = [
  linearCase([TOWER_ROWS], 768, 768),
  linearCase([TOWER_ROWS], 768, 3072),
  linearCase([TOWER_ROWS], 3072, 768),
  linearCase([1], 768, 768),
  mlpCase([TOWER_ROWS], 768, 3072),
  ...packedForms.flatMap((form) =>
    [196, TOWER_ROWS].flatMap((rows) => [
      packedLayerCase(form, rows, 768, 2304, 'bias'),
      packedLayerCase(form, rows, 768, 768, 'residual'),
      packedLayerCase(form, rows, 768, 3072, 'gelu'),
      packedLayerCase(form, rows, 3072, 768, 'residual'),
    ]),
  ),
  ...packedForms.map((form) => packedLayerCase(form, 1, 768, 3072, 'bias')),
  attentionCase({ B: 8, Tq: 196, Tk: 196, heads: 12, headWidth: 64 }),
  attentionCase({ B: 16, Tq: 64, Tk: 64, heads: 12, headWidth: 64 }),
  causalAttentionCase(Array<number>(16).fill(1), { T: 64, heads: 12, headWidth: 64 }),
  attentionCase({ B: 8, Tq: 1, Tk: 196, heads: 12, headWidth: 64 }),
  attentionCase({ B: 2, Tq: 256, Tk: 256, heads: 16, headWidth: 72 }),
  attentionCase({ B: 1, Tq: 1024, Tk: 1024, heads: 12, headWidth: 64 }),
  packedAttentionCase({
    lengths: [1024, 960, 437, 256, 196, 64],
    spare: 7,
    heads: 12,
    headWidth: 64,
  }),
  attentionPoolCase({ B: 8, N: 196, H: 12, D: 768 }),
  groupMatmulCase(8, 12, 768, 64, true),
  layerNormCase([TOWER_ROWS, 768]),
  geluCase([TOWER_ROWS, 3072]),
  l2NormalizeCase([1024, 768]),
  addCase([TOWER_ROWS, 768]),
  addRowCase([8, 196, 768]),
  castCase([TOWER_ROWS, 768]),
  embeddingCase(32000, 768, [32, 64]),
  patchifyCase([8, 3, 224, 224], 16),
  positionResizeCase(
    16,
    768,
    Array.from({ length: 8 }, (): [number, number] => [14, 18]),
    256,
  ),
  normalizePixelsCase(8, 224, 224),
  sigmoidLossCase({ R: 2048, C: 2048, E: 768 }),
  vocabularyLossCase({ N: 512, V: 32000, D: 768 }),
  prototypeLossCase({ n: 256, m: 32, K: 65536, F: 256 }),
  adamCase([3072, 768], 1, 1e-4, 4),
  globalNormCase([
    [3072, 768],
    [768, 3072],
  ]),
];

// ---- Programs of a case, for those who run it ----

/** Specs of the operands by name, after replacing some. */
export function specsOf(
  { operands }: OpCase,
  replaced: Readonly<Record<string, Spec>> = {},
): Record<string, Spec> {
  return Object.fromEntries(
    Object.entries(operands).map(([name, { spec }]) => [name, replaced[name] ?? spec]),
  );
}

function donatedOf({ operands }: OpCase): string[] {
  return Object.keys(operands).filter((name) => operands[name].donated);
}

/** Dtypes and shapes of the results. */
export function resultSpecs(c: OpCase): Record<string, Spec> {
  const specs: Record<string, Spec> = {};
  const trace = (operands: Tensors): Tensors => {
    const results = c.apply(operands);
    for (const [name, { dtype, shape }] of Object.entries(results)) specs[name] = { dtype, shape };
    return results;
  };
  compile(c.op, trace, specsOf(c), { donate: donatedOf(c) }).dispose();
  return specs;
}

/** Where and in what the program of a case runs. */
export interface CaseOptions extends Pick<CompileOptions, 'device' | 'precision' | 'specialize'> {
  /** What the program gives of the results. Default: all of them as they are. */
  readonly given?: (results: Tensors) => Tensors;
}

/** Operands -> results. */
export function forwardProgram(
  c: OpCase,
  specs: Record<string, Spec> = specsOf(c),
  { given = (results) => results, ...options }: CaseOptions = {},
): Program<Record<string, Spec>, Tensors> {
  return compile(`${c.op} ${c.name}`, (tensors) => given(c.apply(tensors)), specs, {
    donate: donatedOf(c),
    ...options,
  });
}

/**
 * Operands and a direction u per result -> the gradient of Σ ⟨u, result⟩ with respect to every
 * differentiable operand.
 */
export function gradientProgram(
  c: OpCase,
  results: Readonly<Record<string, Spec>>,
  { given = (gradients) => gradients, ...options }: CaseOptions = {},
): Program<{ operands: Record<string, Spec>; directions: Record<string, Spec> }, Tensors> {
  const specs = { operands: specsOf(c), directions: { ...results } };
  return compile(
    `gradient of ${c.op} ${c.name}`,
    ({ operands, directions }) => {
      const terms = Object.entries(c.apply(operands)).map(([name, result]) =>
        ops.dot(result, directions[name]),
      );
      const loss = terms.reduce((sum, term) => ops.add(sum, term));
      const wrt = Object.fromEntries(
        Object.entries(operands).filter(([name]) => c.operands[name].differentiable),
      );
      return given(gradient(loss, wrt));
    },
    specs,
    options,
  );
}

const HOST = {
  float32: Float32Array,
  int32: Int32Array,
  uint8: Uint8Array,
  bfloat16: Uint16Array,
};

/** The operands' values in host memory of their dtypes. */
export function hostOperands(c: OpCase, values: Arrays): Record<string, HostArray> {
  return Object.fromEntries(
    Object.entries(c.operands).map(([name, { spec }]) => [
      name,
      HOST[spec.dtype].from(values[name].data),
    ]),
  );
}

/** The same as new arrays on the device, which the caller disposes. */
export function operandArrays(
  c: OpCase,
  values: Arrays,
  device: Device = 'cpu',
): Record<string, DeviceArray> {
  return Object.fromEntries(
    Object.entries(hostOperands(c, values)).map(([name, host]) => [
      name,
      DeviceArray.from(host, c.operands[name].spec.shape, device),
    ]),
  );
}

/** The operands' values, the same on every call. */
export function valuesOf(c: OpCase, random: Random): Arrays {
  return Object.fromEntries(
    Object.entries(c.operands).map(([name, { spec, draw, values }]) => [
      name,
      values === undefined ? random.array(spec.shape, draw) : map(values, Math.fround),
    ]),
  );
}
