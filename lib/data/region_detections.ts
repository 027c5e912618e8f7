// What any detector found, as regions of images: the filters of OWLv2 (arXiv 2306.09683, appendix).
import { z } from 'zod';
import { SiglipError } from '../errors';
import { checked } from '../weights/json_file';
import type { Box, Region } from './pair_row';
import { relativeRegions } from './pair_row';

/** How detections become regions. */
export interface RegionFilter {
  /** Least score of a box. Default 0.1. */
  readonly minScore?: number | undefined;
  /** A score that some box of an image must be above, or it has no regions. Default 0.3. */
  readonly minImageScore?: number | undefined;
  /** Factor of the scores of the label space, where both kinds of queries are pooled. Default 0.3. */
  readonly labelFactor?: number | undefined;
}

const DETECTIONS = z.strictObject(
  {
    image: z.string('the id of an image'),
    /** One for all boxes, or one per box. */
    query: z.union([z.string(), z.array(z.string())], 'a query or one per box'),
    boxes: z.array(
      z.tuple([z.number(), z.number(), z.number(), z.number()], 'ymin, xmin, ymax, xmax'),
      'a list of boxes',
    ),
    scores: z.array(z.number('a score'), 'a list of scores'),
    /** Where the query is from. Default the text. */
    space: z.enum(['text', 'labels'], "'text' or 'labels'").optional(),
  },
  'an object of image, query, boxes, scores and space',
);

/** What one line of a detector's output says. */
export type Detections = z.output<typeof DETECTIONS>;

interface Candidate {
  readonly box: Box;
  readonly query: string;
  readonly score: number;
}

/** Collects the detections of a corpus, line by line, and gives the regions of each image. */
export class RegionDetections {
  // By image, then by box: of equal boxes the best query alone is kept.
  private readonly images = new Map<string, Map<string, Candidate>>();
  private readonly minScore: number;
  private readonly minImageScore: number;
  private readonly labelFactor: number;

  /** @throws ERR_ARGUMENT when a number is not from 0 to 1 */
  constructor({ minScore = 0.1, minImageScore = 0.3, labelFactor = 0.3 }: RegionFilter = {}) {
    for (const [what, value] of Object.entries({ minScore, minImageScore, labelFactor })) {
      if (value >= 0 && value <= 1) continue;
      throw new SiglipError(
        'ERR_ARGUMENT',
        `RegionDetections: ${what} must be from 0 to 1, got ${String(value)}`,
      );
    }
    this.minScore = minScore;
    this.minImageScore = minImageScore;
    this.labelFactor = labelFactor;
  }

  /** Images that something was found in. */
  get size(): number {
    return this.images.size;
  }

  /**
   * Adds a line: `{ image, query, boxes, scores, space }`, boxes in shares of the image. Lines of one
   * image may come in any order.
   *
   * @throws ERR_DATA
   */
  add(line: unknown, who = 'detections'): void {
    const { image, query, boxes, scores, space } = checked(DETECTIONS, line, who, 'ERR_DATA');
    const queries = typeof query === 'string' ? boxes.map(() => query) : query;
    for (const [what, { length }] of Object.entries({ scores, query: queries })) {
      if (length === boxes.length) continue;
      throw new SiglipError(
        'ERR_DATA',
        `${who}: ${what} must be ${String(boxes.length)}, one per box, got ${String(length)}`,
      );
    }
    const factor = space === 'labels' ? this.labelFactor : 1;
    let found = this.images.get(image);
    for (const [i, box] of boxes.entries()) {
      const score = scores[i] * factor;
      if (!(score >= this.minScore)) continue;
      if (found === undefined) this.images.set(image, (found = new Map<string, Candidate>()));
      const key = box.join(' ');
      if (score > (found.get(key)?.score ?? -1)) found.set(key, { box, query: queries[i], score });
    }
  }

  /** Regions of an image, the best first; none when no box is good enough. */
  regions(image: string): Region[] {
    const found = [...(this.images.get(image)?.values() ?? [])];
    if (!found.some(({ score }) => score > this.minImageScore)) return [];
    found.sort((a, b) => b.score - a.score);
    return relativeRegions(found.map(({ box, query }) => ({ box, text: query })));
  }
}
