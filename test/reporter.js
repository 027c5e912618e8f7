// The last line of a test run, plain and alone: `N passed, N failed, N skipped`. A test file that does
// not even load counts as one failure; a test marked todo counts as skipped. Written when the process
// ends, since Jest prints its own summary after every other reporter.
'use strict';

const { writeSync } = require('node:fs');

module.exports = class CountsReporter {
  onRunComplete(_contexts, results) {
    const failed = results.numFailedTests + results.numRuntimeErrorTestSuites;
    const skipped = results.numPendingTests + results.numTodoTests;
    process.once('exit', () => {
      writeSync(
        1,
        `${String(results.numPassedTests)} passed, ${String(failed)} failed, ${String(skipped)} skipped\n`,
      );
    });
  }
};
