'use strict';
// Selects the pairs worth training on out of embeddings of a learner and a reference.
//
//   node docs/examples/select_pairs.js

const { jointSelection, learnability, sigmoidLoss } = require('siglip2/kernels');

// (N, E) unit rows; here random, with texts near their images. `shuffled` of the pairs do not fit.
function embeddings(count, width, noise, shuffled, random) {
  const unit = (row) => {
    const norm = Math.hypot(...row);
    return row.map((x) => x / norm);
  };
  const rows = Array.from({ length: count }, () =>
    unit(Array.from({ length: width }, () => random() - 0.5)),
  );
  const texts = rows.map((row, i) =>
    unit(rows[i < shuffled ? (i + 1) % shuffled : i].map((x) => x + noise * (random() - 0.5))),
  );
  return { images: Float32Array.from(rows.flat()), texts: Float32Array.from(texts.flat()), width };
}

function generator(seed) {
  let state = seed;
  return () => (state = (state * 48271) % 2147483647) / 2147483647;
}

async function main() {
  const [count, shuffled, batch] = [256, 64, 64];
  // The learner knows nothing yet; the reference knows which pairs fit.
  const learner = {
    ...embeddings(count, 16, 20, 0, generator(1)),
    logitScale: 0,
    logitBias: 0,
  };
  const reference = {
    ...embeddings(count, 32, 0.1, shuffled, generator(2)),
    logitScale: Math.log(10),
    logitBias: -5,
  };
  const { loss } = await sigmoidLoss(learner);
  const { diagonal } = await learnability(learner, reference);
  const { indices } = await jointSelection({ learner, reference, batch, chunks: 4 });
  const wrong = [...indices].filter((i) => i < shuffled).length;
  console.log(`loss of the learner ${loss.toFixed(3)}`);
  console.log(`highest score ${Math.max(...diagonal).toFixed(3)}`);
  console.log(`${wrong} of ${batch} selected pairs do not fit, of all ${shuffled} of ${count}`);
}

void main();
