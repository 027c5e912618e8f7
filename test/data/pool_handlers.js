// Tasks for the tests of the pool: some end the thread that does them.
'use strict';

const { setTimeout } = require('node:timers');
const { threadId } = require('node:worker_threads');

/** `wait` ms, then twice the number. `fatal`: how often it ends its thread first. */
async function twice({ number, wait = 0, fatal, fail, hungry }) {
  await new Promise((resolve) => setTimeout(resolve, wait));
  if (fatal !== undefined && Atomics.sub(fatal, 0, 1) > 0) process.exit(7);
  if (hungry !== undefined && Atomics.sub(hungry, 0, 1) > 0) {
    const hoard = [];
    for (;;) hoard.push(new Array(1e5).fill(Math.random()));
  }
  if (fail !== undefined) throw Object.assign(new Error(fail), { code: 'ERR_IMAGE' });
  return { number: 2 * number, threadId, data: Float32Array.of(number) };
}

module.exports = { twice };
