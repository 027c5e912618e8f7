// Streams for the tests of the prefetch: counters that wait, fail or end their thread on request.
'use strict';

const { setTimeout } = require('node:timers');

function openCounter({ start = 0, waits = [0], failAt = -1, exitAt = -1, notes }) {
  let count = start;
  return {
    async next() {
      if (count === failAt) throw Object.assign(new Error('the well is dry'), { code: 'ERR_DATA' });
      if (count === exitAt) process.exit(3);
      await new Promise((resolve) => setTimeout(resolve, waits[count % waits.length]));
      if (notes !== undefined) Atomics.add(notes, 0, 1);
      return { count: count++, data: Float32Array.of(count, count + 0.5) };
    },
    state: () => ({ count }),
    async restore(state) {
      if (!Number.isInteger(state?.count))
        throw new Error(`no such state ${JSON.stringify(state)}`);
      count = state.count;
    },
    async close() {},
  };
}

function openNothing() {
  throw new Error('nothing to open');
}

module.exports = { openCounter, openNothing };
