/** Types are only erased, so no preprocessor is needed. */
export default { compilerOptions: { runes: true } };
