__attribute__((aligned($alignment), visibility("hidden"))) const unsigned char $weights[] = {
#embed "weights.bin"
};
