// One listener per AbortSignal however many calls share it: Node takes more than ten for a leak and
// prints a warning, while a server may well hand the signal of its shutdown to every call.

interface Entry {
  readonly actions: Set<() => void>;
  readonly listener: () => void;
}

/** What is to be done when signals abort. */
export class AbortListeners {
  private readonly entries = new Map<AbortSignal, Entry>();

  /** Calls `action` once if the signal, not aborted yet, aborts; returns what takes that back. */
  add(signal: AbortSignal, action: () => void): () => void {
    const entry = this.entries.get(signal) ?? this.listen(signal);
    entry.actions.add(action);
    return () => {
      entry.actions.delete(action);
      if (entry.actions.size > 0 || this.entries.get(signal) !== entry) return;
      signal.removeEventListener('abort', entry.listener);
      this.entries.delete(signal);
    };
  }

  private listen(signal: AbortSignal): Entry {
    const actions = new Set<() => void>();
    const listener = (): void => {
      this.entries.delete(signal);
      for (const action of [...actions]) action();
    };
    signal.addEventListener('abort', listener, { once: true });
    const entry = { actions, listener };
    this.entries.set(signal, entry);
    return entry;
  }
}
