// PI-resize of patch kernels and resize of positions as big_vision does them, and the positions of
// NaFlex grids with their gradients.
import { gradient } from '../../lib/graph';
import { adaptModel, patchAxis, resizePositions } from '../../lib/model';
import type { AxisMap } from '../../lib/model/axis_map';
import { alongAxis, linearAxis } from '../../lib/model/axis_map';
import { dot, positionResize, reshape } from '../../lib/ops';
import { evaluate, integers, values } from '../nn/evaluate';
import { fixedConfig } from '../nn/towers';
import { expectClose, within } from './close';
import { describeGolden, type GoldenCase } from './golden';

function names(golden: GoldenCase, pattern: RegExp): string[] {
  const found = [...golden.file('tensors.safetensors').keys()].flatMap(
    (name) => pattern.exec(name)?.[1] ?? [],
  );
  return [...new Set(found)];
}

/** A kernel (p, p, C, D) as the columns (row, column, colour) or (colour, row, column) of a weight. */
function columns(golden: GoldenCase, name: string, layout: 'fixed' | 'naflex'): Float32Array {
  const { data, shape } = golden.tensor(name);
  const [p, , colours, width] = shape;
  return Float32Array.from({ length: data.length }, (_, at) => {
    const d = Math.floor(at / (p * p * colours));
    const column = at % (p * p * colours);
    const [pixel, colour] =
      layout === 'naflex'
        ? [Math.floor(column / colours), column % colours]
        : [column % (p * p), Math.floor(column / (p * p))];
    return data[(pixel * colours + colour) * width + d];
  });
}

describeGolden('bv_pi_resize', (golden) => {
  const close = (name: string, actual: ArrayLike<number>): void => {
    expectClose(name, actual, golden.tensor(name), within(golden.atol(name)));
  };
  const kernels = names(golden, /^out\/(pi_.*)\/kernel$/u);
  const grids = names(golden, /^out\/(naflex_\d+x\d+)$/u);
  const positions = names(golden, /^in\/(pos_.*)$/u);

  test('the case holds what is compared', () => {
    expect([kernels.length, positions.length, grids.length]).toEqual([4, 7, 9]);
  });

  test.each(kernels)('%s: the pseudo-inverse, the kernel and its response', (name) => {
    const { data, shape } = golden.tensor(`in/${name}/kernel`);
    const [from, , colours, width] = shape;
    const [to] = golden.tensor(`out/${name}/kernel`).shape;
    const axis = patchAxis(from, to);
    close(`out/${name}/pinv_1d`, axis.weights);
    const both = (map: AxisMap, x: ArrayLike<number>, inner: number): Float64Array => {
      const rows = alongAxis(map, Float64Array.from(x), 1, from * inner);
      return alongAxis(map, rows, to, inner);
    };
    const kernel = both(axis, data, colours * width);
    close(`out/${name}/kernel`, kernel);
    const patch = both(
      linearAxis(from, to, false),
      golden.tensor(`in/${name}/patch`).data,
      colours,
    );
    close(`out/${name}/patch_resized`, patch);
    const response = (x: ArrayLike<number>, w: ArrayLike<number>): Float64Array => {
      const sums = new Float64Array(width);
      for (let i = 0; i < w.length; i++) sums[i % width] += x[Math.floor(i / width)] * w[i];
      return sums;
    };
    close(`out/${name}/response_new`, response(patch, kernel));
    close(`out/${name}/response_old`, response(golden.tensor(`in/${name}/patch`).data, data));
  });

  // Those with the three colours of a model.
  test.each(kernels.filter((name) => golden.tensor(`in/${name}/kernel`).shape[2] === 3))(
    '%s: the weight of a model, in both layouts',
    (name) => {
      const [from, , , width] = golden.tensor(`in/${name}/kernel`).shape;
      const [to] = golden.tensor(`out/${name}/kernel`).shape;
      const tower = { ...fixedConfig.vision, width, heads: 1, patch: from, positions: 1 };
      for (const layout of ['fixed', 'naflex'] as const) {
        const model = {
          ...fixedConfig,
          embedding: width,
          vision: layout === 'fixed' ? { ...tower, layout, imageSize: from } : { ...tower, layout },
        };
        const target = layout === 'fixed' ? { patch: to, imageSize: to } : { patch: to };
        const weight = adaptModel(model, target).adapt(
          'vision.patchEmbedding.weight',
          columns(golden, `in/${name}/kernel`, layout),
        );
        const expected = columns(golden, `out/${name}/kernel`, layout);
        const bar = golden.atol(`out/${name}/kernel`);
        expect(weight).toHaveLength(expected.length);
        expect(Math.max(...expected.map((value, i) => Math.abs(value - weight[i])))).toBeLessThan(
          bar,
        );
      }
    },
  );

  test.each(positions)('%s by both routes', (name) => {
    const { data, shape } = golden.tensor(`in/${name}`);
    for (const method of ['linear', 'corner'] as const) {
      const side = Math.sqrt(golden.tensor(`out/${name}/${method}`).shape[1]);
      const resized = resizePositions(Float32Array.from(data), shape[2], side, method);
      close(`out/${name}/${method}`, resized);
    }
  });

  test.each(grids)('%s: positions and their gradient', async (name) => {
    const table = golden.tensor('in/naflex/pos_embedding');
    const [rows, columnsOf, width] = golden.tensor(`out/${name}`).shape;
    const cells = table.shape[0] * table.shape[1];
    const results = await evaluate(
      {
        grid: values([cells, width], table.data),
        shapes: integers([1, 2], [rows, columnsOf]),
        cotangent: values([1, rows * columnsOf, width], golden.tensor(`in/${name}/cotangent`).data),
      },
      ({ grid, shapes, cotangent }) => {
        const resized = positionResize(grid, shapes, rows * columnsOf);
        const flat = (x: typeof grid): typeof grid => reshape(x, [rows * columnsOf * width]);
        return { resized, grid: gradient(dot(flat(resized), flat(cotangent)), grid) };
      },
    );
    close(`out/${name}`, results.resized);
    close(`grad/${name}/pos_embedding`, results.grid);
  });
});
