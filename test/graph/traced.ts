// Records a function into a graph without compiling it: what rewrites and the planner work on.
import type { Spec } from '../../lib/graph';
import { Tensor, flatten, mapTree } from '../../lib/graph';
import type { Graph } from '../../lib/graph/rewrite';
import { Trace, recordInto } from '../../lib/graph/tensor';

export interface Traced {
  readonly graph: Graph;
  readonly inputs: readonly Tensor[];
  readonly trace: Trace;
}

export function traced(
  specs: Readonly<Record<string, Spec>>,
  fn: (inputs: Readonly<Record<string, Tensor>>) => unknown,
): Traced {
  const trace = new Trace();
  const inputs: Tensor[] = [];
  const results = recordInto(trace, () => {
    const symbols = mapTree<typeof specs, Spec, Tensor>(specs, (spec, path) => {
      const { value } = trace.record(undefined, {}, {}, { value: spec }, path).outputs;
      inputs.push(value);
      return value;
    });
    return flatten(fn(symbols)).map(({ leaf }) => leaf);
  });
  return {
    graph: {
      nodes: trace.nodes.filter((node) => node.definition !== undefined),
      results: results.filter((x): x is Tensor => x instanceof Tensor),
    },
    inputs,
    trace,
  };
}

/** Names of the operations in order. */
export function opNames({ nodes }: Graph): string[] {
  return nodes.map((node) => node.definition?.name ?? '');
}
