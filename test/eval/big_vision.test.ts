// The evaluators of big_vision, run once on random embeddings: same counts, same recalls.
import { retrieval } from '../../lib/eval/retrieval';
import { classEmbeddings, zeroShot } from '../../lib/eval/zero_shot';
import type { Rows } from '../../lib/eval/scores';
import { describeGolden, type GoldenCase } from '../golden_cases/golden';

function rows(golden: GoldenCase, name: string): Rows {
  const { data, shape } = golden.tensor(name);
  return { data: Float32Array.from(data), width: shape[shape.length - 1] };
}

function integers(golden: GoldenCase, name: string): Int32Array {
  return Int32Array.from(golden.tensor(name).data);
}

/** The nine classes of the case. */
function classes(golden: GoldenCase): Rows {
  const prompts = rows(golden, 'in/zeroshot/prompt_embeddings');
  return classEmbeddings(prompts, integers(golden, 'in/zeroshot/prompt_class'), 9);
}

/** Labels of the rows that are no padding; the others get none. */
function maskedLabels(golden: GoldenCase, name: string): Int32Array {
  const mask = integers(golden, 'in/zeroshot/mask');
  const labels = integers(golden, name);
  const perImage = labels.length / mask.length;
  return labels.map((label, i) => (mask[Math.floor(i / perImage)] === 1 ? label : -1));
}

describeGolden('bv_evaluators', (golden) => {
  const expected = (name: string): number[] => [...golden.tensor(`out/${name}`).data];

  test('classes are the mean of their prompts, at unit length', () => {
    const name = 'out/zeroshot/class_embeddings';
    const { data } = golden.tensor(name);
    for (const [i, value] of classes(golden).data.entries()) {
      expect(Math.abs(value - data[i])).toBeLessThanOrEqual(golden.atol(name));
    }
  });

  test('zero-shot accuracy with one label', () => {
    const labels = maskedLabels(golden, 'in/zeroshot/labels');
    const images = rows(golden, 'in/zeroshot/image_embeddings');
    const { top1, predictions } = zeroShot(images, classes(golden), labels);
    expect([top1.count]).toEqual(expected('zeroshot/correct_single'));
    expect([top1.total]).toEqual(expected('zeroshot/count'));
    expect([...predictions]).toEqual(expected('zeroshot/predictions'));
  });

  test('zero-shot accuracy with any of several labels, images without label left out', () => {
    const labels = maskedLabels(golden, 'in/zeroshot/multi_labels');
    const images = rows(golden, 'in/zeroshot/image_embeddings');
    const { top1 } = zeroShot(images, classes(golden), labels);
    expect([top1.count]).toEqual(expected('zeroshot/correct_multi_labelled_only'));
    expect([top1.total]).toEqual(expected('zeroshot/count_labelled_only'));
  });

  test('retrieval recall in both directions', () => {
    const images = rows(golden, 'in/retrieval/image');
    const own = Int32Array.from({ length: 40 }, (_, i) => i);
    const { imageToText, textToImage } = retrieval(
      images,
      rows(golden, 'in/retrieval/text'),
      own,
      integers(golden, 'in/retrieval/text_image'),
    );
    for (const [recall, name] of [
      [imageToText, 'retrieval/img2txt_recall_1_5_10'],
      [textToImage, 'retrieval/txt2img_recall_1_5_10'],
    ] as const) {
      const ours = [recall.at1.value, recall.at5.value, recall.at10.value];
      for (const [i, value] of expected(name).entries()) expect(ours[i]).toBeCloseTo(value, 6);
    }
  });
});
