// A source is a collection that can be read in any order; a stream of batches is made from one.
import type { Philox4x32 } from '../array/random';

/** One image with one of its texts. */
export interface Example {
  /** RGB, (size, size, 3). May be a view of the source's memory: copy before changing it. */
  readonly pixels: Uint8Array;
  /** Pixels per side. */
  readonly size: number;
  readonly text: string;
  /** The text as token ids, padded to one length, when the source knows a tokenizer. */
  readonly tokens?: Int32Array | undefined;
}

/** A finite collection of images with texts. */
export interface Source {
  /** What errors call it. */
  readonly name: string;
  /** Number of images. */
  readonly length: number;
  /**
   * For each image the concept it shows, any integers. Images of one concept never meet in a batch:
   * each would be a false negative of the other for the sigmoid loss.
   */
  readonly concepts: Int32Array;
  /**
   * One image and one of its texts, chosen by `random`: the same index and the same random numbers
   * give the same example.
   */
  read(index: number, random: Philox4x32): Example | Promise<Example>;
}
