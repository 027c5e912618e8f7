// How a captioning decoder writes: LocCa's three tasks (arXiv 2403.19596) with what its papers leave open as
// options.

/** Captioning; a caption and then its box; a box and then its caption. */
export type CaptionTask = 'cap' | 'aref' | 'gcap';

/** The tasks in the order in which a batch has them. */
export const captionTasks = ['cap', 'aref', 'gcap'] as const satisfies readonly CaptionTask[];

/** What a decoder was trained to write. */
export interface CaptionFormat {
  /** Text at the head of a sequence; default `Cap:`, `ARef:` and `GCap:` (LocCa). */
  readonly prefixes: Readonly<Record<CaptionTask, string>>;
  /**
   * How a box is written. `'integers'` (default): ymin xmin ymax xmax in plain text, each round(499 v)
   * of a fraction v of the image. `'loc'`: four of 1,024 ids behind those of the tokenizer in the same
   * order, round(1023 v), as PaliGemma's `<loc0000>` to `<loc1023>`. Neither the order nor the number of
   * steps is in the papers, beyond "up to 500".
   */
  readonly boxes: 'integers' | 'loc';
}

/** The recommended format. */
export const defaultCaptionFormat: CaptionFormat = {
  prefixes: { cap: 'Cap:', aref: 'ARef:', gcap: 'GCap:' },
  boxes: 'integers',
};

/** Steps in which a coordinate is written: it is one of 0 to steps − 1. */
export const boxSteps = { integers: 500, loc: 1024 } as const;

/** Token ids of a decoder that writes in a format, given those of its tokenizer. */
export function captionVocabulary(tokenizerIds: number, { boxes }: CaptionFormat): number {
  return boxes === 'loc' ? tokenizerIds + boxSteps.loc : tokenizerIds;
}
