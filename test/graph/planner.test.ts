import { Philox4x32 } from '../../lib/array/random';
import { add, float32, gradient } from '../../lib/graph';
import { alignment, leftOut, plan, rootsOf } from '../../lib/graph/planner';
import { rewrites } from '../../lib/graph/rewrite';
import type { Graph } from '../../lib/graph/rewrite';
import { operandsOf } from '../../lib/graph/tensor';
import type { Node, Tensor } from '../../lib/graph/tensor';
import { bytesOf } from '../../lib/native/spec';
import { accumulate, dot, gelu, linear, reshape } from '../../lib/ops';
import { traced } from './traced';

const noScratch = { donated: new Set<Tensor>(), scratchBytes: () => 0 };

// Replays a plan: every operand must still hold the value that was written there.
function replay(
  graph: Graph,
  inputs: readonly Tensor[],
  scratchBytes: (node: Node) => number,
): number {
  const planned = plan(graph, inputs, { donated: new Set(), scratchBytes });
  const roots = rootsOf(graph);
  const skipped = leftOut(graph);
  const owner = new Map<string, Tensor | Node>();
  const cells = (x: Tensor | Node, storage: number, offset: number, bytes: number): void => {
    for (let byte = offset; byte < offset + bytes; byte += alignment) {
      owner.set(`${String(storage)}:${String(byte)}`, x);
    }
  };
  const rootOf = (x: Tensor): Tensor => roots.get(x) ?? x;
  const check = (x: Tensor): void => {
    const place = planned.places.get(x);
    expect(place).toBeDefined();
    if (place === undefined) return;
    for (let byte = place.offset; byte < place.offset + bytesOf(x); byte += alignment) {
      expect(owner.get(`${String(place.storage)}:${String(byte)}`)).toBe(rootOf(x));
    }
    if (place.storage === -1)
      expect(place.offset + bytesOf(x)).toBeLessThanOrEqual(planned.arenaBytes);
  };
  for (const x of inputs) {
    const place = planned.places.get(x);
    if (place !== undefined) cells(x, place.storage, place.offset, bytesOf(x));
  }
  for (const node of graph.nodes) {
    const scratch = planned.scratch.get(node);
    if (scratch !== undefined) cells(node, -1, scratch.offset, scratchBytes(node));
    for (const output of Object.values(node.outputs)) {
      const place = planned.places.get(output);
      if (place !== undefined && rootOf(output) === output) {
        cells(output, place.storage, place.offset, bytesOf(output));
      }
    }
    operandsOf(node).forEach(check);
    for (const output of Object.values(node.outputs)) {
      if (skipped.has(output)) expect(planned.places.has(output)).toBe(false);
      else check(output);
    }
  }
  graph.results.forEach(check);
  return planned.arenaBytes;
}

describe('plan', () => {
  test('no value is overwritten while it is needed, on random graphs', () => {
    for (let seed = 0; seed < 30; seed++) {
      const random = new Philox4x32(seed, 'planner');
      const { graph, inputs } = traced({ a: float32(16, 16), b: float32(16, 16) }, ({ a, b }) => {
        const values = [a, b];
        const any = (): Tensor => values[random.integer(values.length)] ?? a;
        for (let i = 0; i < 25; i++) {
          const kind = random.integer(4);
          if (kind === 0) values.push(add(any(), any()));
          else if (kind === 1) values.push(gelu(any()));
          else if (kind === 2) values.push(reshape(any(), [16, 16]));
          else values.push(linear(any(), any()));
        }
        const y = values.at(-1) ?? a;
        return { y: gelu(y), ...gradient(dot(y, any()), { a, b }) };
      });
      const rewritten = rewrites.reduce((current, rewrite) => rewrite(current), graph);
      replay(rewritten, inputs, (node) => (node.definition?.name === 'linear' ? 1024 : 0));
    }
  });

  test('memory of a chain is two values, not its length', () => {
    const { graph, inputs } = traced({ x: float32(1024) }, ({ x }) => {
      let y = x;
      for (let i = 0; i < 20; i++) y = gelu(y);
      return { y };
    });
    expect(replay(graph, inputs, () => 0)).toBe(2 * 4096);
  });

  test('a result lives in a buffer of its own, the arena holds the rest', () => {
    const { graph, inputs } = traced({ x: float32(16) }, ({ x }) => ({ y: gelu(x) }));
    const planned = plan(graph, inputs, noScratch);
    expect(planned.arenaBytes).toBe(0);
    expect(planned.buffers).toEqual([64, 64]);
    expect(planned.results).toEqual([1]);
  });

  test('updates in place need a donated input', () => {
    const { graph, inputs } = traced({ sum: float32(16), x: float32(16) }, ({ sum, x }) => ({
      sum: accumulate(sum, x),
    }));
    expect(() => plan(graph, inputs, noScratch)).toThrow(/donated/);
    const planned = plan(graph, inputs, { ...noScratch, donated: new Set(inputs.slice(0, 1)) });
    expect(planned.results).toEqual([0]);
  });

  test('reading the old value after its update is refused', () => {
    const { graph, inputs } = traced({ sum: float32(16), x: float32(16) }, ({ sum, x }) => {
      const updated = accumulate(sum, x);
      return { updated, stale: gelu(sum) };
    });
    expect(() => plan(graph, inputs, { ...noScratch, donated: new Set(inputs) })).toThrow(
      /before it is overwritten/,
    );
  });
});
