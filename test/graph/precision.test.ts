// Programs of another precision: which dtypes the kernels see, where casts are, and what they save. No
// device is needed.
import { readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { SiglipError } from '../../lib/errors';
import type { ComputeDType, ConstantSource, Lowered, Tensor } from '../../lib/graph';
import { bfloat16, compile, Constants, float32, gradient, lower, tap } from '../../lib/graph';
import { plan, totalBytes } from '../../lib/graph/planner';
import type { Node } from '../../lib/graph/tensor';
import { operandsOf } from '../../lib/graph/tensor';
import { textInputSpec, textParameters, textTower } from '../../lib/model';
import { variant, visionInputSpecs, visionParameters, visionTower } from '../../lib/model';
import type { KernelCall, Ref } from '../../lib/native/kernels';
import { KERNEL_SIGNATURES } from '../../lib/native/kernels';
import * as ops from '../../lib/ops';
import { defaultOptimizer } from '../../lib/train';
import { stepFunction } from '../../lib/train/step';
import { twoTowersStep } from '../../lib/train/two_towers';
import type { OpCase } from '../op_cases';
import { opCases, specsOf } from '../op_cases';

const model = {
  ...variant('mu/16', { imageSize: 64, vocabulary: 100, length: 8 }),
  layerNormEps: 1e-6,
};
const depth = 3;
const config = {
  ...model,
  vision: { ...model.vision, depth },
  text: { ...model.text, depth },
};

/**
 * What every kernel takes in two dtypes: `alike` arguments have one, whichever; `free` ones each their
 * own. All else is float32, ids or bytes.
 */
const contract: Partial<
  Record<KernelCall['kernel'], { readonly alike?: string; readonly free?: string }>
> = {
  linear_forward: { alike: 'x weight bias residual pre y' },
  linear_backward_input: { alike: 'dy weight residual pre dx' },
  linear_backward_weight: { alike: 'dy x' },
  matmul_forward: { alike: 'a b', free: 'y' },
  group_matmul_forward: { alike: 'a b', free: 'y' },
  group_matmul_outer: { alike: 'x y' },
  attention_forward: { alike: 'q k v o' },
  attention_backward: { alike: 'dout q k v o dq dk dv' },
  attention_pool_forward: { alike: 'x' },
  attention_pool_backward: { alike: 'x dx' },
  layer_norm_forward: { alike: 'x y' },
  layer_norm_backward: { alike: 'dy x residual dx' },
  gelu_forward: { alike: 'x y' },
  gelu_backward: { alike: 'dy x dx' },
  embedding_forward: { free: 'table y' },
  embedding_backward: { free: 'dy' },
  patchify_forward: { free: 'patches' },
  patchify_backward: { free: 'dpatches' },
  position_resize_forward: { free: 'positions' },
  position_resize_backward: { free: 'dpositions' },
  token_select_forward: { alike: 'x y' },
  token_select_backward: { alike: 'dy dx' },
  token_mean_forward: { alike: 'x y' },
  token_mean_backward: { alike: 'dy dx' },
  mask_tokens_forward: { alike: 'x y' },
  mask_tokens_backward: { alike: 'dy dx' },
  l2_normalize_forward: { free: 'x' },
  l2_normalize_backward: { alike: 'x dx' },
  sigmoid_loss_forward: { alike: 'images texts' },
  learnability_log_sums: { alike: 'learner_images learner_texts reference_images reference_texts' },
  learnability_forward: { alike: 'learner_images learner_texts reference_images reference_texts' },
  learnability_condition: {
    alike: 'learner_images learner_texts reference_images reference_texts',
  },
  join_rows_forward: { free: 'parts y' },
  add_forward: { alike: 'a b y' },
  add_row_forward: { alike: 'x y', free: 'row' },
  repeat_row_forward: { alike: 'row y' },
  scale_forward: { alike: 'x y' },
  scale_by_forward: { alike: 'x y' },
  copy_forward: { alike: 'x y' },
  accumulate: { free: 'x' },
  sum_rows_forward: { free: 'x' },
  dot_forward: { alike: 'a b' },
  cast_forward: { free: 'x y' },
};

/** The kernel call of a node with the names of its tensors; none for what renames memory. */
function callOf(
  node: Node,
): { kernel: KernelCall['kernel']; tensors: [string, Ref][] } | undefined {
  const kernel = node.definition?.kernel;
  if (kernel === undefined || kernel === 'alias') return undefined;
  const call = kernel({ ...node.inputs, ...node.attributes, ...node.outputs } as Parameters<
    typeof kernel
  >[0]);
  const names = KERNEL_SIGNATURES[call.kernel].filter(({ kind }) => kind !== 'scratch');
  const tensors = call.arguments.flatMap((argument, i): [string, Ref][] => {
    if (argument === null || typeof argument === 'number') return [];
    const { name } = names[i];
    return 'dtype' in argument ? [[name, argument]] : argument.map((x) => [name, x]);
  });
  return { kernel: call.kernel, tensors };
}

function expectContract(nodes: readonly Node[]): void {
  for (const node of nodes) {
    const call = callOf(node);
    if (call === undefined) continue;
    const { alike = '', free = '' } = contract[call.kernel] ?? {};
    const bytes16 = call.tensors.filter(([, { dtype }]) => dtype === 'bfloat16');
    const allowed = [...alike.split(' '), ...free.split(' ')];
    const wrong = bytes16.filter(([name]) => !allowed.includes(name));
    expect([node.label, wrong.map(([name]) => name)]).toEqual([node.label, []]);
    const together = call.tensors.filter(([name]) => alike.split(' ').includes(name));
    expect([node.label, new Set(together.map(([, { dtype }]) => dtype)).size]).toEqual([
      node.label,
      Math.min(together.length, 1),
    ]);
  }
}

function named(nodes: readonly Node[], name: string): Node[] {
  return nodes.filter((node) => node.definition?.name === name);
}

function arenaBytes({ graph, inputs, derived, donated }: Lowered<unknown>): number {
  const given = [...inputs.map(({ tensor }) => tensor), ...derived.map(({ tensor }) => tensor)];
  return plan(graph, given, { donated, scratchBytes: () => 0 }).arenaBytes;
}

describe('every operation', () => {
  const caseOf = (c: OpCase): Lowered<unknown> =>
    lower(
      c.name,
      (operands) => {
        const results = c.apply(operands);
        if (c.backward === undefined) return results;
        const terms = Object.values(results).map((x) => ops.dot(x, x));
        const loss = terms.reduce((sum, term) => ops.add(sum, term));
        const wrt = Object.entries(operands).filter(([name]) => c.operands[name].differentiable);
        return { results, gradients: gradient(loss, Object.fromEntries(wrt)) };
      },
      specsOf(c),
      {
        precision: 'bfloat16',
        donate: Object.keys(c.operands).filter((name) => c.operands[name].donated),
      },
    );

  test.each(opCases.map((c): [string, OpCase] => [`${c.op} ${c.name}`, c]))('%s', (_, c) => {
    const { graph } = caseOf(c);
    expectContract(graph.nodes);
    expect(graph.results.filter(({ dtype }) => dtype === 'bfloat16')).toEqual([]);
  });

  test('has a case', () => {
    const files = readdirSync(join(__dirname, '../../lib/ops')).map((file) =>
      basename(file, '.ts'),
    );
    const covered = new Set(opCases.map(({ op }) => op));
    expect(files.filter((file) => file !== 'index' && !covered.has(file))).toEqual([]);
  });
});

describe('a training step', () => {
  const lowered = (
    precision: ComputeDType,
    changes: Partial<Parameters<typeof twoTowersStep>[0]> = {},
  ): Lowered<unknown> => {
    const { step, specs, options } = stepFunction(
      twoTowersStep({
        model: config,
        batch: 64,
        optimizer: defaultOptimizer,
        precision,
        ...changes,
      }),
    );
    return lower('step', step, specs, options);
  };
  const weightsCast = ({ graph, inputs }: Lowered<unknown>): Map<string, number> => {
    const paths = new Map(inputs.map(({ tensor, path }) => [tensor, path]));
    const counts = new Map<string, number>();
    for (const node of named(graph.nodes, 'cast')) {
      const path = paths.get(operandsOf(node)[0]);
      if (path !== undefined) counts.set(path, (counts.get(path) ?? 0) + 1);
    }
    return counts;
  };

  test('products and activations are bfloat16; parameters, statistics and updates float32', () => {
    const { graph, inputs } = lowered('bfloat16');
    expectContract(graph.nodes);
    const parameters = new Set(inputs.map(({ tensor }) => tensor));
    expect([...parameters].filter(({ dtype }) => dtype === 'bfloat16')).toEqual([]);
    expect(graph.results.filter(({ dtype }) => dtype === 'bfloat16')).toEqual([]);
    for (const node of [...named(graph.nodes, 'adam'), ...named(graph.nodes, 'global_norm')]) {
      expect(operandsOf(node).filter(({ dtype }) => dtype === 'bfloat16')).toEqual([]);
    }
    // Between the patches and the embeddings no activation of all tokens is float32.
    const wide = graph.nodes
      .filter((node) => node.label.includes('blocks'))
      .flatMap((node) => Object.values(node.outputs).map((x): [string, Tensor] => [node.label, x]))
      .filter(([, { dtype, shape }]) => dtype === 'float32' && shape[0] === 64)
      .filter(([, { shape }]) => shape.length === 3 && shape[1] > config.vision.heads);
    expect(wide.map(([label]) => label)).toEqual([]);
  });

  test('casts the weights of products once, and next to nothing else', () => {
    for (const changes of [{}, { checkpoint: true }, { microBatches: 3, checkpoint: true }]) {
      const step = lowered('bfloat16', changes);
      const cast = weightsCast(step);
      expect([...cast.values()].every((count) => count === 1)).toBe(true);
      // Six matrices and biases a block, the patch embedding, the probe, six matrices and two biases of
      // the MAP head, the text head.
      expect(cast.size).toBe(2 * 12 * depth + 2 + 9 + 2);
      expect([...cast.keys()].filter((path) => /norm|tokens|positions/u.test(path))).toEqual([]);
      const others = named(step.graph.nodes, 'cast').length - cast.size;
      // Two before and two behind each attention pooling and its backward, the loss's operands, and the
      // gradient of the probe.
      expect(others).toBeLessThanOrEqual(13 * (changes.microBatches ?? 1));
    }
  });

  test('halves the arena', () => {
    const narrow = arenaBytes(lowered('bfloat16'));
    const wide = arenaBytes(lowered('float32'));
    expect(narrow / wide).toBeGreaterThan(0.5);
    expect(narrow / wide).toBeLessThan(0.6);
  });

  test('float32 is what it was', () => {
    expect(named(lowered('float32').graph.nodes, 'cast')).toEqual([]);
  });
});

describe('inference', () => {
  const source = (dtype: 'float32', shape: readonly number[]): ConstantSource => ({
    dtype,
    shape,
    open: () => Promise.reject(new Error('not opened')),
  });
  const vision = new Constants(visionParameters(config, ({ shape }) => source('float32', shape)));
  const text = new Constants(textParameters(config, ({ shape }) => source('float32', shape)));
  const images = (precision: ComputeDType): Lowered<unknown> =>
    lower(
      'images',
      ({ input }, weights) => {
        const { pooled, embedding } = visionTower(weights, config, input);
        return { pooled, embedding };
      },
      { input: visionInputSpecs(config, 16) },
      { precision, constants: vision },
    );
  const texts = (precision: ComputeDType): Lowered<unknown> =>
    lower(
      'texts',
      ({ ids }, weights) => ({ embedding: textTower(weights, config, ids).embedding }),
      { ids: textInputSpec(config, 16) },
      { precision, constants: text },
    );

  test.each([
    ['images', images],
    ['texts', texts],
  ])('%s: weights are kept in bfloat16 alone, results are float32', (_, tower) => {
    const { graph, derived } = tower('bfloat16');
    expectContract([...graph.nodes, ...derived.flatMap(({ nodes }) => nodes)]);
    expect(graph.results.map(({ dtype }) => dtype)).toEqual(graph.results.map(() => 'float32'));
    const matrices = derived.filter(({ tensor }) => tensor.shape.length > 1);
    const wide = matrices.filter(({ tensor }) => tensor.dtype === 'float32');
    // The positions, and what the probe asks for.
    expect(wide.length).toBeLessThanOrEqual(2);
    const kept = totalBytes(derived.map(({ tensor }) => tensor));
    const before = totalBytes(tower('float32').derived.map(({ tensor }) => tensor));
    expect(kept / before).toBeLessThan(0.6);
    // No cast of a weight is left to the runs.
    const constant = new Set(derived.map(({ tensor }) => tensor));
    expect(named(graph.nodes, 'cast').filter((node) => constant.has(operandsOf(node)[0]))).toEqual(
      [],
    );
  });

  test('halves the arena', () => {
    for (const tower of [images, texts]) {
      expect(arenaBytes(tower('bfloat16')) / arenaBytes(tower('float32'))).toBeLessThan(0.62);
    }
  });
});

describe('the rewrite', () => {
  const specs = { x: float32(4, 8), weight: float32(8, 8), other: float32(4, 8) };
  const rewrite = (fn: (t: Record<keyof typeof specs, Tensor>) => object, taps = false): Node[] => [
    ...lower('f', fn, specs, { precision: 'bfloat16', taps }).graph.nodes,
  ];
  const names = (nodes: readonly Node[]): string[] =>
    nodes.map(({ definition }) => definition?.name ?? '');

  test('readers share one cast, also through renamed memory', () => {
    const nodes = rewrite(({ x, weight }) => ({
      y: ops.add(ops.linear(x, weight), ops.linear(x, ops.reshape(weight, [8, 8]))),
    }));
    expect(names(nodes)).toEqual(['cast', 'cast', 'linear', 'reshape', 'linear', 'cast']);
  });

  test('what was widened is read as it was', () => {
    const nodes = lower(
      'f',
      ({ x, weight }) => ({ y: ops.linear(ops.cast(x, 'float32'), weight) }),
      { x: bfloat16(2, 8), weight: float32(8, 8) },
      { precision: 'bfloat16' },
    ).graph.nodes;
    expect(names(nodes)).toEqual(['cast', 'linear', 'cast']);
  });

  test('results and taps keep their dtype', () => {
    const { graph } = lower(
      'f',
      ({ x, weight }) => ({ y: ops.gelu(tap('product', ops.linear(x, weight))) }),
      specs,
      { precision: 'bfloat16', taps: true },
    );
    expect(graph.results.map(({ dtype }) => dtype)).toEqual(['float32', 'float32']);
  });

  test('what computes in float32 alone is left alone', () => {
    const nodes = rewrite(({ x, other }) => ({ y: ops.gelu(ops.add(x, other)) }));
    expect(names(nodes)).toEqual(['add', 'gelu']);
    expect(nodes.every((node) => node.outputs.y.dtype === 'float32')).toBe(true);
  });

  test('a float32 and a bfloat16 term give a float32 sum', () => {
    const nodes = rewrite(({ x, weight, other }) => {
      const y = ops.linear(x, weight);
      return { sum: ops.add(other, ops.scaleBy(y, 2)), y };
    });
    expect(nodes.find((node) => node.definition?.name === 'add')?.outputs.y.dtype).toBe('float32');
  });

  test('what is overwritten in place is a cast of its own', () => {
    const nodes = rewrite(({ x, weight, other }) => {
      const y = ops.linear(x, weight);
      const wide = ops.l2Normalize(ops.accumulate(ops.scaleBy(y, 1), other));
      return { y, wide };
    });
    const [accumulate] = named(nodes, 'accumulate');
    const { accumulator } = accumulate.inputs;
    expect(operandsOf(accumulate).map(({ dtype }) => dtype)).toEqual(['float32', 'float32']);
    const readers = nodes.filter((node) => operandsOf(node).includes(accumulator as Tensor));
    expect(readers).toEqual([accumulate]);
  });

  test('on the CPU a program of bfloat16 is refused', () => {
    const code = (): unknown => {
      try {
        return compile('f', ({ x, weight }) => ({ y: ops.linear(x, weight) }), specs, {
          precision: 'bfloat16',
        });
      } catch (error) {
        return (error as SiglipError).code;
      }
    };
    expect(code()).toBe('ERR_DEVICE');
  });
});
