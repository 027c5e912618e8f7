// What feeds training: endless, seeded, and able to continue where it was.

/** Plain JSON: what a checkpoint stores of a stream and gives back to {@link Stream.restore}. */
export type StreamState =
  | null
  | boolean
  | number
  | string
  | readonly StreamState[]
  | { readonly [key: string]: StreamState };

/**
 * An endless sequence of values that is a function of its seed alone: after `restore(state)` it
 * gives exactly the values it gave after `state()` was taken, in this process or another.
 */
export interface Stream<T> {
  /** The next value. Calls must not overlap. */
  next(): Promise<T>;
  /** Where the stream stands: after the last value that `next` gave. */
  state(): StreamState;
  /**
   * Continues from a position taken earlier from a stream made with the same arguments.
   *
   * @throws ERR_DATA when the state is not of such a stream
   */
  restore(state: StreamState): Promise<void>;
  /** Ends what runs for it: workers, open files. Safe to call twice. */
  close(): Promise<void>;
}
