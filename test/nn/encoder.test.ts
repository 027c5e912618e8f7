import { compile, flatten, float32, gradient, mapTree } from '../../lib/graph';
import type { Spec } from '../../lib/graph';
import { encoder } from '../../lib/nn';
import * as ops from '../../lib/ops';
import { visionParameters } from '../../lib/model';
import { evaluate, maxDifference, random, randomParameter } from './evaluate';
import { fixedConfig } from './towers';

const { width, heads } = fixedConfig.vision;
const { blocks, norm } = visionParameters(fixedConfig, randomParameter);
const parameters = { blocks, norm };
const x = random('x', [2, 5, width]);
const options = { heads, eps: 1e-6 };

test('checkpointing changes no bit of the output or of any gradient', async () => {
  const [plain, checkpointed] = await Promise.all(
    [false, true].map((checkpoint) =>
      evaluate({ x, weights: random('w', [2, 5, width]), parameters }, (inputs) => {
        const y = encoder(inputs.x, inputs.parameters, { ...options, checkpoint });
        const loss = ops.dot(y, inputs.weights);
        return { y, gradients: gradient(loss, { x: inputs.x, parameters: inputs.parameters }) };
      }),
    ),
  );
  expect(Object.keys(plain).length).toBeGreaterThan(30);
  expect(checkpointed).toEqual(plain);
});

test('checkpointing needs less memory for many blocks', () => {
  const depth = 6;
  const specs = {
    x: float32(4, 16, width),
    parameters: {
      blocks: Array.from({ length: depth }, () =>
        mapTree<(typeof blocks)[0], Spec, Spec>(blocks[0], ({ shape }) => float32(...shape)),
      ),
      norm: { weight: float32(width), bias: float32(width) },
    },
  };
  const [plain, checkpointed] = [false, true].map((checkpoint) => {
    const program = compile(
      'memory',
      (inputs) => {
        const y = encoder(inputs.x, inputs.parameters, { ...options, checkpoint });
        return flatten(gradient(ops.dot(y, y), inputs.parameters)).map(({ leaf }) => leaf);
      },
      specs,
    );
    const { arenaBytes } = program.memory;
    program.dispose();
    return arenaBytes;
  });
  expect(checkpointed).toBeLessThan(0.6 * plain);
});

test.each([0, 4])('onlyToken %d gives that token alone', async (onlyToken) => {
  const [all, one] = await Promise.all(
    [undefined, onlyToken].map((token) =>
      evaluate({ x, parameters }, (inputs) => ({
        y: encoder(inputs.x, inputs.parameters, { ...options, onlyToken: token }),
      })),
    ),
  );
  const expected = [0, 1].flatMap((b) => {
    const start = (b * 5 + onlyToken) * width;
    return [...all.y.subarray(start, start + width)];
  });
  expect(maxDifference(one.y, expected)).toBeLessThan(1e-5);
});
