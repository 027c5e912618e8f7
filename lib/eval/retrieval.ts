// Retrieval: is what belongs together among the nearest?
//
// After big_vision's image_text_retrieval evaluator: a query is answered when any of its positives
// is among the k best, ties by index.
import { SiglipError } from '../errors';
import { wilson, type Proportion } from './proportion';
import { forEachScores, rankOf, rowCount, type Rows } from './scores';

/** Share of the queries that are answered among the 1, 5 and 10 best. */
export interface Recall {
  readonly at1: Proportion;
  readonly at5: Proportion;
  readonly at10: Proportion;
  /** Expected `at1` of a random order: positives over candidates, averaged over queries. */
  readonly chance: number;
  readonly candidates: number;
}

/** Outcome of {@link retrieval}. */
export interface RetrievalResult {
  readonly textToImage: Recall;
  readonly imageToText: Recall;
}

/**
 * Recall in both directions. An image and a text belong together when their concepts are equal, so
 * a query may have several positives; a query without any is left out.
 *
 * @param images (N, width)
 * @param texts (M, width)
 * @param imageConcepts concept of each image, (N), any integers
 * @param textConcepts concept of each text, (M)
 * @throws ERR_SHAPE when the parts do not fit
 *
 * @example
 * // Captions with the index of their image:
 * retrieval(images, captions, Int32Array.from(images.keys()), imageOfCaption);
 */
export function retrieval(
  images: Rows,
  texts: Rows,
  imageConcepts: Int32Array,
  textConcepts: Int32Array,
): RetrievalResult {
  return {
    textToImage: recall(texts, images, textConcepts, imageConcepts),
    imageToText: recall(images, texts, imageConcepts, textConcepts),
  };
}

function recall(
  queries: Rows,
  candidates: Rows,
  queryConcepts: Int32Array,
  candidateConcepts: Int32Array,
): Recall {
  const [count, total] = [rowCount(queries), rowCount(candidates)];
  if (queryConcepts.length !== count || candidateConcepts.length !== total) {
    throw new SiglipError(
      'ERR_SHAPE',
      `retrieval: concepts must be one per row, ${String(count)} and ${String(total)}, ` +
        `got ${String(queryConcepts.length)} and ${String(candidateConcepts.length)}`,
    );
  }
  const positivesOf = new Map<number, number[]>();
  for (const [candidate, concept] of candidateConcepts.entries()) {
    const positives = positivesOf.get(concept);
    if (positives === undefined) positivesOf.set(concept, [candidate]);
    else positives.push(candidate);
  }
  let [asked, at1, at5, at10, guess] = [0, 0, 0, 0, 0];
  forEachScores(queries, candidates, (query, scores) => {
    const positives = positivesOf.get(queryConcepts[query]);
    if (positives === undefined) return;
    let best = positives[0];
    for (const positive of positives) if (scores[positive] > scores[best]) best = positive;
    const rank = rankOf(scores, best);
    asked++;
    guess += positives.length / total;
    if (rank < 1) at1++;
    if (rank < 5) at5++;
    if (rank < 10) at10++;
  });
  return {
    at1: wilson(at1, asked),
    at5: wilson(at5, asked),
    at10: wilson(at10, asked),
    chance: asked === 0 ? 0 : guess / asked,
    candidates: total,
  };
}
