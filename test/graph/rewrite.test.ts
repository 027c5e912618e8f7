import { add, float32, gradient } from '../../lib/graph';
import { fuseActivations, fuseResiduals, prune, rewrites } from '../../lib/graph/rewrite';
import type { Graph } from '../../lib/graph/rewrite';
import { Tensor } from '../../lib/graph';
import { dot, gelu, layerNorm, linear } from '../../lib/ops';
import { opNames, traced } from './traced';

const specs = {
  x: float32(4, 8),
  other: float32(4, 8),
  weight: float32(8, 8),
  bias: float32(8),
  scale: float32(8),
};

function rewritten(graph: Graph): Graph {
  return rewrites.reduce((current, rewrite) => rewrite(current), graph);
}

describe('prune', () => {
  test('drops what no result depends on', () => {
    const { graph } = traced(specs, ({ x, other, weight }) => {
      linear(other, weight);
      return { y: linear(x, weight) };
    });
    expect(opNames(prune(graph))).toEqual(['linear']);
  });
});

describe('fuseActivations', () => {
  test('gelu after linear becomes its epilogue', () => {
    const { graph } = traced(specs, ({ x, weight, bias }) => ({
      y: gelu(linear(x, weight, bias)),
    }));
    const fused = fuseActivations(graph);
    expect(opNames(fused)).toEqual(['linear']);
    expect(fused.nodes[0]?.attributes).toEqual({ activation: 1 });
    expect(fused.results[0]?.output).toBe('y');
    expect(fused.nodes[0]?.outputs['y']).toBe(fused.results[0]);
  });

  test('whoever else reads the linear output gets the value before the activation', () => {
    const { graph } = traced(specs, ({ x, weight }) => {
      const h = linear(x, weight);
      return { y: gelu(h), h };
    });
    const fused = fuseActivations(graph);
    expect(opNames(fused)).toEqual(['linear']);
    expect(fused.results.map((x) => x.output)).toEqual(['y', 'pre']);
  });

  test('the backward reads the kept pre-activation', () => {
    const { graph } = traced(specs, ({ x, weight, scale }) => {
      const y = gelu(linear(x, weight));
      return gradient(dot(y, y), { weight, scale });
    });
    const fused = rewritten(graph);
    const forward = fused.nodes.find((node) => node.definition?.name === 'linear');
    const backward = fused.nodes.find((node) => node.definition?.name === 'gelu_backward');
    expect(backward?.inputs['x']).toBe(forward?.outputs['pre']);
    expect(opNames(fused)).not.toContain('gelu');
  });
});

describe('fuseActivationGradients', () => {
  const trained = (read: (hidden: Tensor, t: Readonly<Record<string, Tensor>>) => Tensor): Graph =>
    traced(specs, (t) => {
      const hidden = gelu(linear(t.x, t.weight));
      return gradient(read(hidden, t), { x: t.x, weight: t.weight });
    }).graph;

  test('the gradient of gelu is taken by the product before it', () => {
    const graph = trained((hidden, { weight }) => {
      const y = linear(hidden, weight);
      return dot(y, y);
    });
    const fused = rewritten(graph);
    expect(opNames(fused)).not.toContain('gelu_backward');
    const [product] = fused.nodes.filter(({ inputs }) => inputs['pre'] instanceof Tensor);
    const forward = fused.nodes.find(({ outputs }) => outputs['pre'] === product.inputs['pre']);
    expect(forward?.definition?.name).toBe('linear');
  });

  test('not where something else is added to the product', () => {
    const graph = trained((hidden, { weight, other }) => {
      const y = linear(hidden, weight);
      return add(dot(y, y), dot(hidden, other));
    });
    expect(opNames(rewritten(graph))).toContain('gelu_backward');
  });
});

describe('fuseResiduals', () => {
  test('a sum with a linear output becomes its residual, on either side', () => {
    for (const flip of [false, true]) {
      const { graph, inputs } = traced(specs, ({ x, other, weight }) => {
        const y = linear(x, weight);
        return { y: flip ? add(y, other) : add(other, y) };
      });
      const fused = fuseResiduals(graph);
      expect(opNames(fused)).toEqual(['linear']);
      expect(fused.nodes[0]?.inputs['residual']).toBe(inputs[1]);
    }
  });

  test('not when the output is read elsewhere', () => {
    const { graph } = traced(specs, ({ x, other, weight }) => {
      const y = linear(x, weight);
      return { y, sum: add(other, y) };
    });
    expect(opNames(fuseResiduals(graph))).toEqual(['linear', 'add']);
  });

  test('chains: two residual branches leave no sum', () => {
    const { graph } = traced(specs, ({ x, weight, bias, scale }) => {
      const a = add(x, linear(layerNorm(x, scale, bias), weight, bias));
      return { y: add(a, linear(gelu(linear(layerNorm(a, scale, bias), weight)), weight, bias)) };
    });
    expect(opNames(rewritten(graph))).toEqual([
      'layer_norm',
      'linear',
      'layer_norm',
      'linear',
      'linear',
    ]);
  });

  test('gradients of a value used twice are summed in an epilogue', () => {
    const { graph } = traced(specs, ({ x, weight, bias, scale }) => {
      const y = add(x, linear(layerNorm(x, scale, bias), weight));
      return gradient(dot(y, y), { x });
    });
    const fused = rewritten(graph);
    const norm = fused.nodes.find((node) => node.definition?.name === 'layer_norm_backward');
    expect(norm?.inputs['residual']).not.toBeNull();
  });
});
