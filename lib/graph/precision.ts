// Mixed precision as a rewrite of a finished graph. Functions are traced, differentiated and fused in
// float32; then every operation's declaration (OpDefinition.precision) says which of its operands and
// outputs are of the program's precision, outputs are retyped, and a cast goes where a reader wants
// another dtype than its operand has. Parameters, their gradients, statistics, losses and the optimizer
// are in no declaration, so they stay float32, as do inputs and results.
import type { DType } from '../native/spec';
import { ConstantValues } from './constants';
import { substitute } from './gradient';
import { cast } from './intrinsics';
import type { Graph } from './rewrite';
import { prune } from './rewrite';
import type { Node, Operand, Operands } from './tensor';
import { Tensor, Trace, operandsOf, recordInto } from './tensor';

/** In what a program computes; sums and statistics are float32 in either. */
export type ComputeDType = 'float32' | 'bfloat16';

/**
 * The graph with activations of another dtype. A tensor is cast at most once and its readers share
 * the result: a weight once per run, whatever the number of micro-batches or of recomputed segments.
 *
 * @param leaves - inputs that never change, by the path of each; casts of them are theirs to hoist.
 */
export function narrowed(
  graph: Graph,
  dtype: ComputeDType,
  leaves: ReadonlyMap<Tensor, string> = new Map(),
): Graph {
  if (dtype === 'float32') return graph;
  const narrower = new Narrower(dtype, leaves);
  for (const node of graph.nodes) narrower.take(node);
  return prune({
    nodes: narrower.nodes,
    results: graph.results.map((x) => narrower.result(x)),
  });
}

class Narrower {
  readonly nodes: Node[] = [];
  // What a tensor of the traced graph has become.
  private readonly current = new Map<Tensor, Tensor>();
  private readonly producers = new Map<Tensor, Node>();
  // The same values in the other dtype.
  private readonly others = new Map<Tensor, Tensor>();
  private readonly constants: ConstantValues;

  constructor(
    private readonly dtype: DType,
    leaves: ReadonlyMap<Tensor, string>,
  ) {
    this.constants = new ConstantValues(leaves);
  }

  take(node: Node): void {
    const dtypeOf = this.dtypesOf(node);
    const overwritten: readonly unknown[] = Object.values(node.definition?.inPlace ?? {});
    const convert = (name: string, traced: Tensor): Tensor => {
      const x = this.now(traced);
      const dtype = dtypeOf(name, traced, x.dtype);
      if (x.dtype === dtype) return x;
      // What is overwritten is nobody else's.
      return overwritten.includes(name)
        ? this.cast(x, dtype, node.label)
        : this.as(x, dtype, node.label);
    };
    const inputs = Object.entries(node.inputs).map(([name, operand]): [string, Operand] => {
      if (operand === null) return [name, null];
      if (operand instanceof Tensor) return [name, convert(name, operand)];
      return [name, operand.map((x) => convert(name, x))];
    });
    const outputs = this.add(node, Object.fromEntries(inputs), (name, output) =>
      dtypeOf(name, output, 'float32'),
    );
    for (const [name, traced] of Object.entries(node.outputs)) {
      const output = outputs[name];
      if (output === undefined) continue;
      this.current.set(traced, output);
      this.rememberWidened(node, output);
    }
  }

  // What a cast has widened is there as it was.
  private rememberWidened({ definition, inputs }: Node, y: Tensor): void {
    const { x } = inputs;
    if (definition?.name !== 'cast' || !(x instanceof Tensor)) return;
    const source = this.now(x);
    if (source.dtype === this.dtype) this.others.set(y, source);
  }

  /** A result as it was traced. */
  result(traced: Tensor): Tensor {
    return this.as(this.now(traced), traced.dtype, traced.node.label);
  }

  private now(traced: Tensor): Tensor {
    return this.current.get(traced) ?? traced;
  }

  // The dtype of an operand or output, given its name, what was traced, and in what it comes.
  private dtypesOf({
    definition,
    inputs,
  }: Node): (name: string, traced: Tensor, comes: DType) => DType {
    const precision = definition?.precision ?? 'float32';
    if (precision === 'float32') return (_, traced) => traced.dtype;
    const { narrow = [], alike = [], any = [], stored = [] } = precision;
    const together = alike.flatMap((name) => {
      const operand = inputs[name];
      return operand instanceof Tensor ? [this.now(operand).dtype] : [];
    });
    const shared =
      together.length > 0 && together.every((dtype) => dtype === this.dtype)
        ? this.dtype
        : 'float32';
    return (name, traced, comes) => {
      if (traced.dtype !== 'float32') return traced.dtype;
      if (narrow.includes(name)) return this.dtype;
      if (alike.includes(name)) return shared;
      if (stored.includes(name)) return this.constants.has(this.now(traced)) ? this.dtype : comes;
      return any.includes(name) ? comes : 'float32';
    };
  }

  // Behind what only renames memory there is one cast, that of the memory.
  private as(x: Tensor, dtype: DType, reader: string): Tensor {
    if (x.dtype === dtype) return x;
    const known = this.others.get(x);
    if (known !== undefined) return known;
    const producer = this.producers.get(x);
    const other =
      producer?.definition?.kernel === 'alias'
        ? this.renamed(producer, x, dtype, reader)
        : this.cast(x, dtype, reader);
    this.others.set(x, other);
    return other;
  }

  private renamed(alias: Node, x: Tensor, dtype: DType, reader: string): Tensor {
    const sources = new Map(
      operandsOf(alias).map((source) => [source, this.as(source, dtype, reader)]),
    );
    const outputs = this.add(alias, substitute(alias.inputs, sources), () => dtype);
    return outputs[x.output] ?? x;
  }

  private cast(x: Tensor, dtype: DType, reader: string): Tensor {
    const trace = new Trace();
    const y = recordInto(trace, () => cast(x, dtype));
    const scope = reader.slice(0, reader.lastIndexOf('/') + 1);
    const named = { ...y.node, label: `${scope}${y.node.label}` };
    this.constants.follow(named);
    this.nodes.push(named);
    return y;
  }

  // Appends the operation with other operands. Outputs whose dtype stays keep their identity.
  private add(
    node: Node,
    inputs: Operands,
    dtypeOf: (name: string, output: Tensor) => DType,
  ): Readonly<Record<string, Tensor>> {
    const outputs: Record<string, Tensor> = {};
    const added: Node = { ...node, inputs, outputs };
    for (const [name, output] of Object.entries(node.outputs)) {
      const dtype = dtypeOf(name, output);
      outputs[name] =
        dtype === output.dtype ? output : new Tensor(added, name, { dtype, shape: output.shape });
      this.producers.set(outputs[name], added);
    }
    this.constants.follow(added);
    this.nodes.push(added);
    return outputs;
  }
}
