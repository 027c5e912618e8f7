// Builds an ONNX graph node by node. A linear layer is a float product or, in an int8 graph, what
// onnxruntime's quantize_dynamic makes of it.
import type { OnnxAttribute, OnnxConstant, OnnxModel, OnnxNode, OnnxValue } from './model_file';

/** Name of a value in the graph. */
export type Value = string;

type Source = () => Promise<Float32Array> | Float32Array;

/** How the weights of an int8 graph are quantised; activations always are, per tensor, as uint8. */
export type Granularity = 'tensor' | 'channel';

/**
 * Largest magnitude of a quantised weight. 127 where the processor sums int8 products in 32 bits
 * (VNNI). Without it onnxruntime sums pairs of them in 16 bits, which overflow, so its documentation
 * asks for `reduce_range`, that is 64.
 */
export type WeightRange = 127 | 64;

/**
 * `'float32'`, or int8: `'integer'` writes DynamicQuantizeLinear, MatMulInteger, Cast, Mul as
 * quantize_dynamic does; `'fused'` writes the one node DynamicQuantizeMatMul, bias included.
 */
export type LinearForm =
  | { readonly kind: 'float32' }
  | {
      readonly kind: 'integer' | 'fused';
      readonly granularity: Granularity;
      readonly range: WeightRange;
    };

const microsoft = 'com.microsoft';
const floatCode = 1;

export class OnnxGraph {
  private readonly nodes: OnnxNode[] = [];
  private readonly constants: OnnxConstant[] = [];
  private readonly quantized = new Map<Value, readonly [Value, Value, Value]>();
  private next = 0;

  constructor(readonly linearForm: LinearForm) {}

  /** A node with one output. */
  node(
    type: string,
    inputs: readonly Value[],
    attributes: Record<string, OnnxAttribute> = {},
    domain = '',
  ): Value {
    return this.nodeOf(type, inputs, 1, attributes, domain)[0];
  }

  nodeOf(
    type: string,
    inputs: readonly Value[],
    outputs: number,
    attributes: Record<string, OnnxAttribute> = {},
    domain = '',
  ): Value[] {
    const names = Array.from({ length: outputs }, () => this.name(type));
    this.nodes.push({ type, domain, inputs, outputs: names, attributes });
    return names;
  }

  contrib(
    type: string,
    inputs: readonly Value[],
    attributes: Record<string, OnnxAttribute> = {},
  ): Value {
    return this.node(type, inputs, attributes, microsoft);
  }

  floats(shape: readonly number[], values: Source | Float32Array): Value {
    const source = typeof values === 'function' ? values : () => values;
    return this.constant({ type: 'float32', shape, values: source });
  }

  scalar(value: number): Value {
    return this.floats([], Float32Array.of(value));
  }

  integers(values: readonly number[]): Value {
    const data = BigInt64Array.from(values, BigInt);
    return this.constant({ type: 'int64', shape: [values.length], values: () => data });
  }

  add(a: Value, b: Value): Value {
    return this.node('Add', [a, b]);
  }

  /** x (…, in) · weightᵀ + bias; the weight comes as (out, in) and is stored as (in, out). */
  async linear(
    x: Value,
    weight: Source,
    bias: Source,
    [outWidth, inWidth]: readonly [number, number],
  ): Promise<Value> {
    const offset = this.floats([outWidth], bias);
    if (this.linearForm.kind === 'float32') {
      const matrix = this.floats([inWidth, outWidth], async () =>
        transposed(await weight(), outWidth, inWidth),
      );
      return this.node('Add', [this.node('MatMul', [x, matrix]), offset]);
    }
    const { kind, granularity, range } = this.linearForm;
    const { scales, values } = quantize(await weight(), outWidth, inWidth, granularity, range);
    const shape = granularity === 'tensor' ? [] : [outWidth];
    const matrix = this.constant({
      type: 'int8',
      shape: [inWidth, outWidth],
      values: () => values,
    });
    const scale = this.floats(shape, scales);
    const zeros = new Int8Array(scales.length);
    const zero = this.constant({ type: 'int8', shape, values: () => zeros });
    if (kind === 'fused') {
      return this.contrib('DynamicQuantizeMatMul', [x, matrix, scale, zero, offset]);
    }
    const [quantized, xScale, xZero] = this.quantize(x);
    const product = this.node('MatMulInteger', [quantized, matrix, xZero, zero]);
    const floats = this.node('Cast', [product], { to: { int: floatCode } });
    return this.add(this.node('Mul', [floats, this.node('Mul', [xScale, scale])]), offset);
  }

  /** Adds the node that gives `value` the name of an output. */
  named(value: Value, name: string): void {
    this.nodes.push({
      type: 'Identity',
      domain: '',
      inputs: [value],
      outputs: [name],
      attributes: {},
    });
  }

  model(name: string, inputs: readonly OnnxValue[], outputs: readonly OnnxValue[]): OnnxModel {
    return { name, nodes: this.nodes, constants: this.constants, inputs, outputs };
  }

  // Once per value: query, key and value read one quantised tensor.
  private quantize(x: Value): readonly [Value, Value, Value] {
    const known = this.quantized.get(x);
    if (known !== undefined) return known;
    const [values, scale, zero] = this.nodeOf('DynamicQuantizeLinear', [x], 3);
    const result = [values, scale, zero] as const;
    this.quantized.set(x, result);
    return result;
  }

  private constant(constant: Omit<OnnxConstant, 'name'>): Value {
    const name = this.name('constant');
    this.constants.push({ ...constant, name });
    return name;
  }

  private name(word: string): Value {
    return `${word}_${String(this.next++)}`;
  }
}

/** (rows, columns) -> (columns, rows). */
export function transposed(values: Float32Array, rows: number, columns: number): Float32Array {
  const result = new Float32Array(values.length);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) result[c * rows + r] = values[r * columns + c];
  }
  return result;
}

// Symmetric, as quantize_dynamic with QInt8 weights: scale = max |w| / range, no zero point.
function quantize(
  weight: Float32Array,
  outWidth: number,
  inWidth: number,
  granularity: Granularity,
  range: WeightRange,
): { scales: Float32Array; values: Int8Array } {
  const { abs, max, round } = Math;
  const largest = new Float32Array(outWidth);
  weight.forEach((value, i) => {
    const row = Math.floor(i / inWidth);
    largest[row] = max(largest[row], abs(value));
  });
  if (granularity === 'tensor') largest.fill(largest.reduce((a, b) => max(a, b), 0));
  const values = new Int8Array(weight.length);
  for (let r = 0; r < outWidth; r++) {
    const perUnit = largest[r] === 0 ? 0 : range / largest[r];
    for (let c = 0; c < inWidth; c++) {
      values[c * outWidth + r] = round(weight[r * inWidth + c] * perUnit);
    }
  }
  const scales = largest.map((value) => (value === 0 ? 1 : value / range));
  return { scales: granularity === 'tensor' ? scales.subarray(0, 1) : scales, values };
}
