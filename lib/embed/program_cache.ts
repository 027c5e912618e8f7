const keptPrograms = 16;

/** The last few programs by key; what falls out is disposed. */
export class ProgramCache<P extends { dispose(): void }> {
  private readonly programs = new Map<string, P>();

  get(key: string, build: () => P): P {
    const program = this.programs.get(key) ?? build();
    this.programs.delete(key);
    this.programs.set(key, program);
    for (const [oldest, stale] of this.programs) {
      if (this.programs.size <= keptPrograms) break;
      stale.dispose();
      this.programs.delete(oldest);
    }
    return program;
  }

  dispose(): void {
    for (const program of this.programs.values()) program.dispose();
    this.programs.clear();
  }
}
